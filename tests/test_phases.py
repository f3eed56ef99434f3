"""The four experiments of experiments/phases: pairing, dealing, resuming, and a page that is made of the results."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from jhsae import config as cfg
from jhsae.evals import RowLabels
from jhsae.evals.nulls import permuted_parents, sibling_swap
from jhsae.features.firings import Firings
from jhsae.init import AbstractInit, FromTeacher
from jhsae.teacher import Concept

pytestmark = pytest.mark.slow  # an experiment; `pytest -m slow` runs its quick form

PHASES = Path(__file__).parents[1] / "experiments" / "phases"


@pytest.fixture(scope="module")
def code():
    """The modules of the folder by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PHASES))
        names = ("phases", "measure", "initialisation", "penalties", "steering", "table", "teacher")
        yield {name: runpy.run_path(str(PHASES / f"{name}.py"), run_name=name) for name in names}
        for name in names:
            if str(getattr(sys.modules.get(name), "__file__", "")).startswith(str(PHASES)):
                del sys.modules[name]


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (PHASES / "results.jsonl").read_text().splitlines()]


def test_children_are_dealt_to_other_parents(code):
    tree, rebuilt = code["teacher"]["tree"], code["teacher"]["rebuilt"]
    concepts = tuple(
        Concept(f"p{p}", "", (p,), tuple(Concept(f"p{p}k{k}", "", ()) for k in range(3))) for p in range(4)
    )
    parents = tree(concepts)
    assert rebuilt(concepts, parents) == concepts
    rng = np.random.default_rng(0)
    swapped = rebuilt(concepts, sibling_swap(parents, rng))
    for own, new in zip(concepts, swapped, strict=True):
        assert own.tokens == new.tokens and len(set(own.children) - set(new.children)) == 1
    dealt = rebuilt(concepts, permuted_parents(parents, rng))
    assert sorted(c.id for p in dealt for c in p.children) == sorted(c.id for p in concepts for c in p.children)
    assert dealt != concepts


def test_a_part_of_the_classes_and_of_the_latents(code):
    labels = RowLabels(("a", "b", "c"), np.array([0, 1, 1, -1, 2, 2, 2], np.int32), np.arange(7))
    new, chosen = code["measure"]["most_rows"](labels, 2)
    assert new.names == ("b", "c") and chosen.tolist() == [1, 2] and new.classes.tolist() == [-1, 0, 0, -1, 1, 1, 1]
    fired = Firings(np.arange(4, dtype=np.int32), np.ones(4, np.float32), np.array([0, 1, 3, 3, 4, 4, 4]), 7)

    class Tree:
        experts, atoms = 2, 2

    class Sae:
        tree = Tree()

    top = code["measure"]["top_level"](fired, Sae())
    assert top.size == 2 and top.rows.tolist() == [0, 1, 2] and top.count().tolist() == [1, 2]


def test_a_row_is_measured_once(code, tmp_path):
    phases, asked = code["phases"], []
    settings = cfg.load(phases["Settings"], PHASES / "embedded.yaml")
    place = phases["Place"](settings, tmp_path, tmp_path / "r.jsonl")

    def measure():
        asked.append(1)
        return {"numbers": {"x": 1.0}}

    for seed in (0, 0, 1):
        place.record("e", "v", seed, "hash", measure)
    other = phases["Place"](
        cfg.load(phases["Settings"], PHASES / "embedded.yaml", ["batch=64"]), tmp_path, place.results
    )
    other.record("e", "v", 0, "hash", measure)
    assert len(asked) == 3 and [row["seed"] for row in place.rows("e")] == [0, 1, 0] and not place.rows("f")
    assert all(row["commit"] and row["versions"]["jax"] for row in place.rows("e"))
    assert place.teach_config(["seed=3"]).lm.path == "embedded"


def test_variants_differ_in_their_start_alone(code):
    def first(changes):
        init = next((change for change in changes if change.startswith("init=")), None)
        path = PHASES.parents[1] / "configs" / "quickstart" / "geometry.yaml"
        train = cfg.load(code["phases"]["Train"], path, ["teacher=t", *([init] if init else [])])
        return [cfg.build(slot, AbstractInit) for slot in train.init if slot["_target_"].endswith("FromTeacher")]

    starts = {name: first(changes) for name, changes in code["initialisation"]["variants"](4).items()}
    assert starts["teacher"] == [FromTeacher("t")] and starts["permuted"] == [FromTeacher("t", permuted=5)]
    assert starts["random"] == starts["random_frozen"] == []
    assert starts["parents_only"] == [FromTeacher("t", projectors=False, children=False)]
    assert starts["children_only"] == [FromTeacher("t", parents=False)]


def test_the_page_is_made_of_the_results(code, rows):
    page = (PHASES / "README.md").read_text()
    for name, make in code["table"]["TABLES"].items():
        assert f"<!-- {name} -->\n{make(rows)}\n<!-- end -->" in page, name
    assert all(re.fullmatch(r"[0-9a-f]{40}", row["commit"]) and row["config_hash"] for row in rows)
    keys = [(row["experiment"], row["variant"], str(row["seed"])) for row in rows]
    assert len(keys) == len(set(keys)) and len({row["settings"] for row in rows}) == 1


def test_the_parts_of_the_explained_variance_add_up_to_it(rows):
    for row in rows:
        if row["experiment"] in ("initialisation", "penalties"):
            assert np.mean([*row["units"]["ev_r2"].values()]) == pytest.approx(row["numbers"]["ev_r2"], abs=1e-4)


@pytest.mark.slow
def test_the_quick_path(tmp_path, monkeypatch, code):
    words = ["all.py", "--quick", "--out", str(tmp_path / "out"), "--results", str(tmp_path / "r.jsonl"), "seeds=[0]"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(PHASES / "all.py"), run_name="__main__")
    made = {json.loads(line)["experiment"] for line in (tmp_path / "r.jsonl").read_text().splitlines()}
    assert made == {"teacher", "initialisation", "penalties", "steering", "stability"}
