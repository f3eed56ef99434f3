"""The study of hierarchies: its arms build and are matched, its runs follow from the rows, its page from them too."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from jhsae.commands.ablation.sizes import budgets

STUDY = Path(__file__).parents[1] / "experiments" / "hierarchy"
MODULES = ("arms", "columns", "jobs", "measure", "settings", "study", "table")


@pytest.fixture
def load(monkeypatch):
    """Imports a module of the study; other experiments have modules of these names."""
    monkeypatch.syspath_prepend(STUDY)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)  # so that what is imported here is taken away again
        del sys.modules[name]
    return import_module


def test_arms_build_and_are_matched(load):
    arms, settings = load("arms"), load("settings")
    size = settings.Size()
    others = [arm for arm in settings.REAL if arm not in settings.TAUGHT]  # whose configs need a folder
    costs = {arm: budgets(arms.real(arm, 3, 8, size)) for arm in others}
    for arm, cost in costs.items():
        assert cost["tokens"] == size.steps * size.batch
        if arm != "flat_macs":
            assert cost["parameters"] == pytest.approx(costs["topk"]["parameters"], rel=arms.OFF), arm
    assert costs["flat_macs"]["macs"] == pytest.approx(costs["recommended"]["macs"], rel=arms.OFF)
    assert costs["flat_macs"]["parameters"] < costs["recommended"]["parameters"] / 2


def test_the_claim_of_the_recommended_config_is_that_of_the_rows(load):
    """Less than a third of TopK's encoder multiplications, at an L0 above 16 with fewer sweeps."""
    rows = load("study").read_rows(STUDY / "results.jsonl").values()
    cost = {
        arm: [(row["l0"], row["metrics"]["encoder_macs"]) for row in rows if (row["part"], row["arm"]) == ("real", arm)]
        for arm in ("topk", "recommended")
    }
    (topk,) = {macs for _, macs in cost["topk"]}
    assert {l0 for l0, _ in cost["recommended"]} == {8, 16, 24}
    assert all(macs < topk / 3 for _, macs in cost["recommended"])
    for l0, part in ((16, 0.28), (24, 0.32)):
        assert round(max(macs for own, macs in cost["recommended"] if own == l0) / topk, 2) == part


def test_what_the_configs_say_of_other_arms_is_that_of_the_rows(load):
    """Of the first seed, layer 2, L0 16."""
    table, rows = load("table"), load("study").read_rows(STUDY / "results.jsonl")
    arms = ("topk", "recommended", "recommended_exact", "flat_parameters", "recipe")
    ev, macs = (
        {arm: table.of(rows, "real", 2, arm, 16)[0]["metrics"][name] for arm in arms}
        for name in ("ev_r2", "encoder_macs")
    )
    recommended, recipe = (
        (STUDY.parents[1] / "configs" / f"{name}.yaml").read_text() for name in ("recommended", "recipe")
    )
    times = macs["flat_parameters"] / macs["topk"]
    assert f"EV {ev['flat_parameters']:.3f} at {times:.1f} times TopK's" in recommended
    assert f"For exactly 16, at {ev['recommended'] - ev['recommended_exact']:.3f} less" in recommended
    assert f"{macs['recipe'] / macs['topk']:.2f} of its encoder multiplications" in recipe


def test_a_longer_run_has_longer_schedules(load):
    arms, size = load("arms"), load("settings").Size()
    once, four = (arms.real("jumprelu", 2, 16, size, times) for times in (1, 4))
    assert [config.stages[0].learning_rate["decay"] for config in (once, four)] == [240, 960]
    assert [config.weights["sparsity"]["steps"] for config in (once, four)] == [400, 1600]
    assert four.resampling["until"] == 4 * once.resampling["until"] and four.sae == once.sae


def test_runs_follow_from_the_rows(load):
    """A rate is searched before what needs it, one beyond the edge too; what has a row is not wanted again."""
    jobs, settings = load("jobs"), load("settings")
    size = settings.Size(seeds=(0, 1), worlds=("w",), arms=("topk", "recommended_exact", "tree_2x", "tree_4x"))
    rows, made = {}, []
    while (job := next(jobs.wanted(jobs.finals(size, lambda name: 7), size, rows.get), None)) is not None:
        made.append(job)
        rows[job] = {"validation": {"ev_r2": -job.rate, "l0": float(job.l0)}}  # the smallest rate is best
    assert len(set(made)) == len(made)
    lowest = min(job.rate for job in made if job.arm == "topk" and job.part == "real")
    assert lowest < min(settings.REAL["topk"].rates)
    later = [job for job in made if job.arm == "topk" and job.part == "real" and (job.place, job.l0) != ("2", 16)]
    assert {job.rate for job in later} == {lowest}
    assert {(job.place, job.l0, job.seed) for job in later} == {
        (place, l0, seed) for place in "23" for l0 in size.l0s for seed in (0, 1) if (place, l0) != ("2", 16)
    }
    trees = [job for job in made if job.part == "worlds"]
    assert {job.rate for job in trees if job.arm == "tree_4x"} <= {job.rate for job in trees if job.arm == "tree_2x"}
    assert [job.seed for job in made if job.part == "stability" and job.place == "2"] == [0, 1]


def test_the_page_is_that_of_the_results_file(load):
    table, file = load("table"), STUDY / "results.jsonl"
    text = (STUDY / "README.md").read_text()
    for name, new in table.made(table.read_rows(file)).items():
        shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", text, re.DOTALL)
        assert shown is not None and shown[1] == new, f"python {STUDY / 'table.py'} --write writes the table {name}"


@pytest.mark.slow  # an experiment, in its quick form
def test_quick_study_runs_and_has_nothing_left_to_run(tmp_path, load):
    file = tmp_path / "rows.jsonl"
    command = [sys.executable, STUDY / "study.py", "--quick", "--results", file, "--work", tmp_path]
    first, second = (subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(first.splitlines()) == len(rows) and not second
    assert {row["part"] for row in rows} == {"real", "worlds", "stability", "labels"}
    assert all(row["metrics"] and row["config_hash"] for row in rows)
