"""The study on known truth: its arms are matched, its oracle is the truth, its page is that of its results file."""

import json
import re
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

from jhsae.data import Identity
from jhsae.evals.truth.matching import Matching, cosines
from jhsae.evals.world import on_world
from jhsae.sae import FlatSAE
from jhsae.sparsify import TopK
from jhsae.training.recipe import build_sae
from jhsae.worlds import Hierarchy, World, build_world
from jhsae.worlds.config import TreeConfig, WorldConfig

pytestmark = pytest.mark.slow  # an experiment; `pytest -m slow` runs its quick form

STUDY = Path(__file__).parents[1] / "experiments" / "truth"
ROWS = [json.loads(line) for line in (STUDY / "results.jsonl").read_text().splitlines()]
EMBED = 24


@pytest.fixture
def arms(monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    import arms

    return arms


@pytest.fixture
def study(arms):
    import study

    return study


@pytest.fixture
def table(arms):
    import table

    return table


@pytest.fixture(scope="module")
def world() -> World:
    """Two trees of depth 3 with four children at every feature, 170 features."""
    return build_world(WorldConfig("none", EMBED, trees=TreeConfig(2, 4, 3, scale_children=True), child_cosine=0.0))[0]


def test_wide_arms_have_the_same_latents_and_nearly_the_same_parameters(arms):
    size, sizes, products = arms.Size(), {}, {}
    for arm in (*arms.FLAT, *arms.HIERARCHICAL, *arms.NARROW):
        settings = arms.config(arm, 10, 1e-3, 0, size, 128)
        sae = eqx.filter_eval_shape(build_sae, settings, jax.random.key(0))
        sizes[arm] = sae.features, sum(a.size for a in jax.tree.leaves(sae) if a.dtype == np.float32)
        products[arm] = arms.encoder_products(settings)
        assert settings.stages[0].learning_rate["decay"] * 5 == size.steps
        assert settings.resampling["until"] * 5 == 4 * size.steps
    wide = [sizes[arm] for arm in (*arms.FLAT, *arms.HIERARCHICAL)]
    assert {latents for latents, _ in wide} == {1360}
    assert max(n for _, n in wide) / min(n for _, n in wide) < 1.03
    assert products["topk_narrow"] == pytest.approx(products["scale"], rel=0.02) and products["topk"] == 1360 * 128


def test_oracles_start_at_the_truth(arms, world):
    """Every feature has a latent of cosine 1, under the latent of its parent; permuted children have other parents."""
    size = arms.Size(experts=40)
    plain = build_sae(arms.config("geometry", 4, 1e-3, 0, size, EMBED), jax.random.key(0))
    known = {arm: arms.started(arm, plain, world) for arm in arms.STARTED}
    matched = {
        arm: Matching(cosines(np.asarray(world.features), np.asarray(sae.dictionary()))) for arm, sae in known.items()
    }
    assert np.min(matched["geometry_all"].cosines.max(axis=1)) == pytest.approx(1, abs=1e-5)
    for arm, right in (("geometry_roots", True), ("geometry_permuted", False)):
        upper = np.flatnonzero(world.hierarchy.levels < 2)
        assert np.min(matched[arm].cosines[upper].max(axis=1)) == pytest.approx(1, abs=1e-5)
        latent, over = matched[arm].cosines.argmax(axis=1), np.asarray(known[arm].latent_parents())
        same = [over[latent[c]] == latent[p] for p, c in world.hierarchy.edges if p in world.hierarchy.roots]
        assert all(same) if right else not all(same)
    assert isinstance(world.hierarchy, Hierarchy) and known["geometry_all"].router_enc is not plain.router_enc


def test_the_numbers_are_those_of_on_world(study, arms, world):
    sae = FlatSAE(EMBED, 30, TopK(3), key=jax.random.key(0))
    held = [(np.asarray(x), np.asarray(codes)) for x, codes in study.draws(world, 512, study.TEST)]
    found = study.compared(sae, Identity(), study.Data(world, held[0][0], [], held), arms.QUICK)
    metrics, _, parts = on_world(sae, Identity(), world, 512)
    for name in ("ev_r2", "l0", "mcc", "f1", "feature_f1", "dead_latents", "true_l0", "dead"):
        assert found["metrics"][name] == pytest.approx(metrics[name], rel=1e-5), name
    assert found["parts"]["roots"] == parts["roots"] and found["parts"]["levels"] == parts["levels"]


def test_what_has_a_row_is_not_run_again(study, arms, tmp_path):
    file, size = tmp_path / "rows.jsonl", arms.Size()
    found = []
    for run in study.todo(("topk", "topk_narrow"), [0, 1], size, file):
        found.append(run)
        with file.open("a") as out:
            numbers = {"validation_ev": -abs(run.rate - size.rates[0]), "metrics": {"l0": run.l0}}
            out.write(json.dumps(run._asdict() | numbers) + "\n")
    assert [run.rate for run in found[:2]] == list(size.rates[:2])  # it fell, so the third is left out
    assert {run.rate for run in found[2:]} == {size.rates[0]} and len(set(found)) == len(found)
    assert {(run.arm, run.l0, run.seed) for run in found} == {
        (arm, l0, seed) for arm in ("topk", "topk_narrow") for l0 in size.l0s for seed in (0, 1)
    }
    assert not list(study.todo(("topk", "topk_narrow"), [0, 1], size, file))


def test_the_page_is_that_of_the_results_file(table):
    text = (STUDY / "README.md").read_text()
    for name, lines in table.made(ROWS).items():
        shown = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)
        assert shown is not None and shown[1] == lines, f"python {STUDY / 'table.py'} writes the table {name}"
    assert all(re.fullmatch(r"[0-9a-f]{40}(-dirty)?", row["commit"]) and row["config_hash"] for row in ROWS)
