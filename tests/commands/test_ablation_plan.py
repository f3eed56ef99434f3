"""Arms and the plan of an ablation: what is run, in which order, with which size and rate; nothing is trained here."""

import numpy as np
import pytest
import runs
import yaml

from jhsae import config
from jhsae.commands.ablation.arms import OWN, Arm
from jhsae.commands.ablation.config import Ablate
from jhsae.commands.ablation.effects import summarised
from jhsae.commands.ablation.markdown import markdown
from jhsae.commands.ablation.plan import Study
from jhsae.commands.ablation.sizes import budgets
from jhsae.errors import UserError
from jhsae.report.ablation import render

TOPK = "sae.route={_target_: jhsae.sparsify.TopK, k: 2}"
AXES = {
    "pick": {"one": ["sae.pick.k=1"], "two": ["sae.pick.k=2"]},
    "input": {"residual": ["sae.child_input={_target_: jhsae.sae.Residual}"]},
    "experts": {"few": ["sae.experts=6"], "many": ["sae.experts=20"]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    runs.store(folder / "store")
    runs.train_config(
        folder, folder / "store", folder / "base", stages=[{"name": "a", "steps": 4, "learning_rate": 0.01}]
    )
    return folder


def study(place, **changes):
    top = {
        "out": str(place / "out"),
        "store": str(place / "store"),
        "poles": {"noisy": {"train": str(place / "base.yaml")}},
        "axes": AXES,
    }
    (place / "study.yaml").write_text(yaml.safe_dump(top | changes, sort_keys=False))
    return config.load(Ablate, place / "study.yaml")


def simulated(planned, ev=lambda run: 0.5, l0=lambda train: 2.0 * train.sae["route"]["k"]):
    """The rows of a study whose runs are imagined, and the runs in their order."""
    rows, order = {}, []
    while wanted := [run for _, step in planned.steps(rows) for run in step.runs]:
        run, settings = wanted[0], planned.settings(*wanted[0][:4])
        assert planned.key(run) not in rows
        order.append(run)
        metrics = {"ev_r2": ev(run), "l0": float(l0(settings)), "dead": 0.1 * run.seed} | budgets(settings)
        rows[planned.key(run)] = {
            "config_hash": planned.key(run)[0], "seed": run.seed, "commit": "c", "metrics": metrics,
            "units": {"ev_r2": {f"s{i}": (ev(run) or 0.0) + 0.01 * i for i in range(20)}},
        }  # fmt: skip
    return rows, order


def test_flips_leave_out_the_poles_own_values_and_those_that_do_not_apply(place):
    axes = AXES | {
        "default": {"token": ["sae.child_input={_target_: jhsae.sae.Token}"]},
        "temperature": {"one": {"set": ["sae.route.temperature=1.0"], "not_for": {"plain": "it has none"}}},
    }
    poles = {
        "noisy": {"train": str(place / "base.yaml")},
        "plain": {"train": str(place / "base.yaml"), "overrides": [TOPK]},
    }
    planned = Study(study(place, axes=axes, poles=poles))
    assert [arm.name for arm in planned.arms[:3]] == ["noisy", "plain", "noisy: pick=two"]
    assert len(planned.arms) == 2 + 5 + 4
    assert [tuple(left) for left in planned.left_out] == [
        ("noisy", "pick=one", OWN), ("noisy", "default=token", OWN), ("plain", "pick=one", OWN),
        ("plain", "default=token", OWN), ("plain", "temperature=one", "it has none"),
    ]  # fmt: skip


def test_a_grid_crosses_values_with_the_poles_own(place):
    planned = Study(study(place, flips=[], grid=["pick", "experts"]))
    assert len(planned.arms) == 2 * 3 and planned.arms[0] == Arm("noisy")
    assert Arm("noisy", (("pick", "two"), ("experts", "many"))) in planned.arms


@pytest.mark.slow
def test_random_search_draws_different_arms_from_its_seed_alone(place):
    drawn = [Study(study(place, flips=[], search={"count": 4, "seed": seed})).arms for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and [len(set(arms)) for arms in drawn] == [5, 5, 5]
    assert len(Study(study(place, flips=[], search={"count": 50})).arms) == 2 * 2 * 3, "no more than there are"


def test_a_combination_that_does_not_build_is_listed_and_a_single_value_is_an_error(place):
    axes = {"experts": {"two": ["sae.experts=2"]}, "k": {"four": ["sae.route.k=4"]}}
    planned = Study(study(place, axes=axes, grid=["experts", "k"]))
    assert [left.change for left in planned.left_out] == ["experts=two, k=four"]
    assert "axes.experts.two with axes.k.four at pole noisy does not build" in planned.left_out[0].reason
    with pytest.raises(UserError, match=r"axes\.k\.many at pole noisy does not build: .*route: k is 99"):
        Study(study(place, axes={"k": {"many": ["sae.route.k=99"]}}))
    with pytest.raises(UserError, match=r"axes\.k\.other at pole noisy: .*sae\.route\.n"):
        Study(study(place, axes={"k": {"other": ["sae.route.n=3"]}}))
    with pytest.raises(UserError, match=r"axes\.k\.nothing has no overrides at pole noisy; write set"):
        Study(study(place, axes={"k": {"nothing": []}}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flips": ["picks"]}, "flips names the axis picks, expected one of pick, input, experts"),
        ({"grid": ["picks"]}, "grid names the axis picks"),
        ({"search": {"count": 1, "axes": ["picks"]}}, "search.axes names the axis picks"),
        (
            {"axes": {"a": {"b": {"set": ["seed=1"], "not_for": {"nosy": "x"}}}}},
            r"axes\.a\.b names nosy, expected poles",
        ),
        ({"match": "l0"}, r"match is l0, but solve names no key"),
        ({"reference": "other"}, "reference is other, expected one of the poles noisy"),
        ({"rates": [0.1, 0.1]}, "holds a peak twice"),
        ({"train": "a.yaml"}, "names both of train and poles"),
        ({"poles": {}}, "names neither of train and poles"),
        ({"poles": {}, "train": "a.yaml", "lm": "embedded", "rates": [0.1]}, "rates needs poles"),
        ({"truth": "w"}, "names both of store and truth"),
    ],
)
def test_a_config_that_cannot_be_is_a_sentence(place, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        study(place, **changes)


def test_keys_that_came_later_leave_the_hash_of_older_configs(place):
    """The digits are those of the class as it was before there were poles."""
    axes = {"pick": {"two": ["sae.pick.k=2"]}}
    plain = Ablate("o", "base.yaml", axes, [0, 1], "s", "embedded", ["dead_window=100"], 20)
    assert config.config_hash(plain) == "6ce44cf561f4"


def test_rates_are_chosen_on_validation_rows_and_seeds_then_run_on_test_rows(place):
    planned = Study(study(place, rates=[0.01, 0.02, 0.04], axes={"pick": AXES["pick"]}))
    best = {"noisy": 0.02, "noisy: pick=two": 0.08}
    _, order = simulated(planned, lambda run: -abs(run.rate - best[run.arm.name]))
    pole = [run for run in order if not run.arm.picks]
    assert [(run.rate, run.seed, run.kind) for run in pole] == [
        (0.01, 0, "validation"), (0.02, 0, "validation"), (0.04, 0, "validation"),
        (0.02, 0, "test"), (0.02, 1, "test"), (0.02, 2, "test"),
    ]  # fmt: skip
    other = [run.rate for run in order if run.arm.picks]
    assert other == [0.01, 0.02, 0.04, 0.08, 0.16, 0.08, 0.08, 0.08], "the best at the edge is left twice at most"
    folders = {planned.settings(*run[:4]).out for run in pole}
    assert len(folders) == 5, "the first seed is not trained again for the test"
    assert {planned.settings(*run[:4]).data.seed for run in pole} == {0, 1, 2}


def test_an_undefined_explained_variance_chooses_no_rate(place):
    """As of validation rows that are all equal: the arm has no result, and the page says why."""
    planned = Study(study(place, rates=[0.01, 0.02], axes={"pick": AXES["pick"]}))
    rows, order = simulated(planned, lambda run: None if run.arm.picks and run.kind == "validation" else 0.5)
    assert {run.kind for run in order if run.arm.picks} == {"validation"}
    failures = [step.failure for arm, step in planned.steps(rows) if arm.picks]
    assert failures and all("explained variance of its validation rows is undefined" in words for words in failures)


@pytest.mark.few(1)
@pytest.mark.parametrize("budget", ["parameters", "macs"])
def test_a_size_gives_every_arm_the_budget_of_its_pole(place, budget):
    planned = Study(study(place, match=budget, solve=["sae.experts"], off_l0=0.2, flips=["input", "pick"]))
    costs = {}
    for arm, step in planned.steps({}):
        costs[arm.name] = budgets(planned.settings(*step.runs[0][:4]))[budget]
    own = costs.pop("noisy")
    assert len(costs) == 2 and all(abs(cost / own - 1) < 0.2 for cost in costs.values())
    with pytest.raises(UserError, match=r"axes\.input\.residual at pole noisy: sae\.route\.k has no size with"):
        Study(study(place, match="parameters", solve=["sae.route.k"], overrides=[], axes={
            "input": {"residual": ["sae.sub=9"]}}))  # fmt: skip


def test_tokens_are_matched_by_steps(place):
    planned = Study(study(place, match="tokens", axes={"batch": {"half": ["data.batch=32"]}}))
    steps = {arm.name: planned.settings(*step.runs[0][:4]) for arm, step in planned.steps({})}
    assert steps["noisy: batch=half"].stages[0].steps == 2 * steps["noisy"].stages[0].steps


@pytest.mark.slow
def test_an_l0_is_matched_by_pilots_and_one_that_cannot_be_is_told(place):
    poles = {
        "noisy": {"train": str(place / "base.yaml")},
        "plain": {"train": str(place / "base.yaml"), "overrides": [TOPK, "sae.route.k=8"]},
    }
    planned = Study(
        study(place, poles=poles, match="l0", solve=["sae.route.k"], reference="plain", flips=["input"], off_l0=0.05)
    )
    rows, _ = simulated(planned, l0=lambda t: t.sae["route"]["k"] * (4 if "child_input" in t.sae else 2))
    steps = {arm.name: step for arm, step in planned.steps(rows)}
    assert steps["plain"].size == () and steps["noisy"].size == ("sae.route.k=8",)
    assert steps["noisy: input=residual"].size == ("sae.route.k=4",)
    assert not any(step.failure for step in steps.values())
    coarse = Study(study(place, poles=poles, match="l0", solve=["sae.pick.k"], reference="plain", flips=["input"]))
    rows, _ = simulated(coarse)
    failures = {arm.name: step.failure for arm, step in coarse.steps(rows) if step.failure}
    assert "sae.pick.k has no size with an L0 of 16 (the nearest is 4" in failures["noisy"]
    summary = summarised(coarse, rows)
    assert summary["failures"][0]["arm"] in failures and "Without a result" in markdown(summary)


def test_effects_are_paired_by_seed_and_unit(place):
    planned = Study(study(place, flips=["pick"]))
    rng = np.random.default_rng(0)
    noise = {seed: rng.normal() for seed in (0, 1, 2)}
    rows, _ = simulated(planned, lambda run: 0.5 + noise[run.seed] + 0.02 * bool(run.arm.picks))
    summary = summarised(planned, rows)
    pole, arm = summary["arms"]
    assert pole["differences"] == {} and arm["change"] == "pick=two"
    for name, groups in (("ev_r2", 3), ("ev_r2_units", 20)):
        found = arm["differences"][name]
        assert found["mean"] == pytest.approx(0.02) and found["groups"] == groups
        assert found["low"] == pytest.approx(0.02) and found["high"] == pytest.approx(0.02)
    assert arm["differences"]["sibling_cosine"] is None and arm["numbers"]["ce_recovered"] is None
    text, page = markdown(summary), render(summary, "A & B")
    assert "| pick=two | 3 |" in text and "+0.02 [+0.02, +0.02]" in text
    assert "<title>A &amp; B</title>" in page and "EV, less that of noisy" in page and "<script" not in page


def test_no_result_at_all_is_a_sentence(place):
    planned = Study(study(place, flips=[]))
    with pytest.raises(UserError, match=r"out has no row of test sequences \(nothing has been trained\)"):
        summarised(planned, {})
