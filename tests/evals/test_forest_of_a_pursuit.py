"""What is counted by level of a pursuit's forest of any depth, against dense codes; empty slots are not dead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from pursuits import EMPTY, LEVELS, pursuit, roots_left, with_rows

from jhsae import evals
from jhsae.data import Identity
from jhsae.errors import UserError
from jhsae.evals.groups import groups
from jhsae.metric import Euclidean
from jhsae.sae import Forest, PursuitSAE
from jhsae.usage import Context
from jhsae.worlds import Hierarchy


@pytest.fixture(scope="module", params=["flat", "two", "three"])
def found(request):
    sae = pursuit(LEVELS[request.param], runs.EMBED)
    x = runs.activations(200)
    metrics, frequency = evals.fidelity(sae, Identity(), [x[:120], x[120:]], x.mean(axis=0, dtype=np.float64))
    return sae, metrics, frequency, x


@pytest.mark.few(2)
def test_numbers_by_level_are_those_of_the_dense_codes(found):
    sae, metrics, frequency, x = found
    forward = sae.forward(jnp.asarray(x), Context())
    dense = np.asarray(forward.codes.dense())
    np.testing.assert_allclose(frequency, (dense != 0).mean(axis=0), atol=1e-7)
    if sae.tree is None:
        assert "l0_parents" not in metrics and metrics["dead"] == np.mean(~dense.any(axis=0))
        return
    level, there = sae.tree.level_of, np.arange(sae.features) < sae.features - EMPTY
    centred = np.sum((x - x.mean(axis=0)) ** 2)
    for own in range(len(sae.levels)):
        l0 = (dense[:, level == own] != 0).sum(axis=1).mean()
        dead = np.mean(~dense[:, (level == own) & there].any(axis=0))
        if own == 0:
            assert (metrics["l0_parents"], metrics["dead_experts"]) == pytest.approx((l0, dead))
        elif len(sae.levels) > 2:
            assert (metrics[f"l0_level_{own}"], metrics[f"dead_level_{own}"]) == pytest.approx((l0, dead))
        if own < len(sae.levels) - 1:
            x_hat = sae.decode(type(forward.codes)(forward.prefixes[:, own], forward.codes.indices, sae.features,
                                                   scores=forward.codes.scores))  # fmt: skip
            ev = metrics["parents_only_ev_r2" if own == 0 else f"to_level_{own}_ev_r2"]
            assert ev == pytest.approx(1 - np.sum((x - np.asarray(x_hat)) ** 2) / centred, rel=1e-4)
            assert ev < metrics["ev_r2"]
    assert metrics["l0_parents"] + metrics["l0_atoms"] == pytest.approx(metrics["l0"])
    below = dense[:, (level > 0) & there]
    assert metrics["dead_atoms"] == pytest.approx(np.mean(~below.any(axis=0)))
    assert metrics["dead"] == pytest.approx(np.mean(~dense[:, there].any(axis=0)))


def test_an_empty_slot_has_no_parameters(found):
    sae, metrics, _, _ = found
    held = int(np.sum(np.asarray(sae.occupied)))
    assert metrics["parameters"] == held * runs.EMBED + runs.EMBED


def test_groups_have_a_name_for_each_level():
    assert groups(None, 24) == {"latents": slice(0, 24)}
    assert groups(Forest((8, 3)), 32) == {"parents": slice(0, 8), "atoms": slice(8, 32)}
    three = groups(Forest((8, 3, 2)), 80)
    assert three == {"parents": slice(0, 8), "level_1": slice(8, 32), "level_2": slice(32, 80)}


def test_orthogonality_is_of_each_row_to_its_own_parent(found):
    sae, _, frequency, _ = found
    if sae.tree is None:
        with pytest.raises(UserError, match="this PursuitSAE is flat"):
            evals.orthogonality(sae, Euclidean(), frequency)
        return
    rows, parents = np.float64(sae.rows), sae.latent_parents()
    mixed = rows.copy()  # below the roots: half of the parent in every row, which is 60 degrees from a right angle
    for i in np.flatnonzero((parents >= 0) & rows.any(axis=1)):
        mixed[i] = rows[i] + np.sqrt(3) * mixed[parents[i]] / np.linalg.norm(mixed[parents[i]])
        mixed[i] /= np.linalg.norm(mixed[i])
    alive = np.ones(sae.features)
    assert evals.orthogonality(sae, Euclidean(), alive)["parent_child_off_90"] < 1e-3
    found = evals.orthogonality_units(with_rows(sae, mixed), Euclidean(), alive)
    angles = [np.dot(mixed[i], mixed[parents[i]]) for i in np.flatnonzero(parents >= 0) if mixed[i].any()]
    np.testing.assert_allclose(np.sort(found.own), np.sort(np.degrees(np.arcsin(angles))), atol=1e-3)
    assert len(found.own) == sae.features - sae.tree.roots - EMPTY and len(found.nulls) == sae.tree.roots - 1
    assert np.mean(found.own) > np.max(found.null_means)


def test_likeness_of_siblings_and_the_roots_that_merging_would_leave(found):
    sae, _, _, _ = found
    rows = np.asarray(sae.rows).copy()
    rng = np.random.default_rng(0)
    for i in range(1, 6):  # of six roots, four are nearly one, two others nearly one
        rows[i] = rows[0 if i < 4 else 4] + 0.2 * rng.normal(size=runs.EMBED) / 4
        rows[i] /= np.linalg.norm(rows[i])
    rows[7] = 0.0  # a slot that merging has emptied
    alike = with_rows(sae, rows)
    like = evals.likeness(alike, 0.6)
    assert like["roots"] == len(rows[: sae.forest.roots]) - 1
    assert like["roots_after_merging"] == roots_left(alike, 0.6) < like["roots"]
    assert evals.likeness(alike, 0.999)["roots_after_merging"] == like["roots"]
    if sae.tree is None:
        assert like["sibling_cosine"] is None
        return
    parents, largest = sae.latent_parents(), []
    for parent in range(sae.features):
        own = [i for i in np.flatnonzero(parents == parent) if rows[i].any()]
        pairs = [abs(float(rows[i] @ rows[j])) for i in own for j in own if i < j]
        largest += [max(pairs)] if pairs else []
    assert like["sibling_cosine"] == pytest.approx(np.median(largest), rel=1e-4)


def test_known_truth_counts_no_empty_slot(found):
    sae, _, _, x = found
    whole = int(np.sum(np.asarray(sae.occupied)))
    features = np.asarray(sae.rows)[:whole]
    parents = np.asarray(sae.latent_parents())[:whole]
    hierarchy = Hierarchy.of_parents(parents.tolist())
    codes = np.asarray(sae.encode(x).dense())[:, :whole]
    truth = evals.truth(sae, Identity(), features, hierarchy, [(x, codes)], permutations=3)
    assert truth["latents"] == whole and truth["dead_latents"] == int(np.sum(~codes.any(axis=0)))
    assert truth["mcc"] == pytest.approx(1.0) and truth["uniqueness"] == 1.0
    if sae.tree is not None:
        assert truth["edges"]["share"] == 1.0
        assert [level["latents"] for level in truth["levels"]] == [int(np.sum(sae.tree.level_of[:whole] == level))
                                                                   for level in range(len(sae.levels))]  # fmt: skip


def test_a_level_that_is_still_empty_has_no_dead_rows():
    sae = PursuitSAE(runs.EMBED, (8, 3, 2), pursuit((8,), runs.EMBED).budget, filled=2, key=jax.random.key(3))
    x = runs.activations(64)
    metrics, _ = evals.fidelity(sae, Identity(), [x], x.mean(axis=0, dtype=np.float64))
    assert metrics["dead_level_2"] is None and metrics["l0_level_2"] == 0 and metrics["dead"] < 1
