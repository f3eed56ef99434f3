"""Stability: an SAE and its permuted copy have everything in common, independent ones what their nulls have."""

import equinox as eqx
import jax
import numpy as np
import pytest
from labelled import firings
from pursuits import pursuit, with_rows
from runs import EMBED, store
from scipy.linalg import subspace_angles

from jhsae import evals
from jhsae.data import ArrayRows, CenterScale, Identity, Standardize
from jhsae.errors import UserError
from jhsae.evals.groups import code_matrix
from jhsae.evals.stability import MOST, agreement, match, subspaces
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.sparsify import TopK

EXPERTS, SUB, ATOMS = 10, 3, 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return store(tmp_path_factory.mktemp("stability") / "store", 256)


def tree(seed, embed=EMBED):
    return HierarchicalSAE(embed, EXPERTS, SUB, ATOMS, TopK(3), TopK(1), key=jax.random.key(seed))


def permuted(sae):
    """The same SAE with its experts in another order, and the atoms of each."""
    experts = np.random.default_rng(0).permutation(EXPERTS)
    atoms = np.random.default_rng(1).permutation(ATOMS)

    def moved(path, leaf):
        name = path[0].name
        return leaf[experts][:, atoms] if name in ("atom_enc", "atom_dec") else leaf[experts]

    arrays, rest = eqx.partition(sae, eqx.is_array)
    return eqx.combine(jax.tree_util.tree_map_with_path(moved, arrays), rest), experts


def none(count=2):
    return (Identity(),) * count


def test_a_permuted_copy_has_everything_in_common(rows):
    first = tree(0)
    second, experts = permuted(first)
    for other in (first, second):
        found = evals.stability(first, other, none(), rows)
        for part, metrics in (("parents", ("cosine", "f1", "correlation")), ("atoms", ("cosine", "f1", "correlation"))):
            for name in metrics:
                assert found[part][name]["mean"] == pytest.approx(1, abs=1e-5), (part, name)
            assert found[part]["above_0.9"] == found[part]["above_0.7"] == 1
        for name in ("overlap", "first_cosine"):
            assert found["subspaces"][name]["mean"] == pytest.approx(1, abs=1e-5)
            assert max(found["subspaces"][name]["null"]) < 0.9
    partners = found["parents"]["partners"]
    assert [experts[p] for p in partners] == found["parents"]["cosine"]["units"]
    assert max(found["parents"]["f1"]["null"]) < 0.6 and len(found["parents"]["f1"]["null"]) == EXPERTS - 1


def test_independent_saes_have_what_chance_has(rows):
    found = evals.stability(tree(0), tree(1), none(), rows)
    for part, name, by in (
        ("parents", "cosine", 0.08),
        ("atoms", "cosine", 0.08),
        ("subspaces", "overlap", 0.08),
        ("subspaces", "first_cosine", 0.12),
    ):
        own = found[part][name]
        assert own["mean"] == pytest.approx(np.mean(own["null"]), abs=by), (part, name)
        assert own["mean"] < 0.85


def test_flat_saes_of_two_sizes_and_a_dead_feature(rows):
    flat = FlatSAE(EMBED, 20, TopK(4), key=jax.random.key(0))
    dead = eqx.tree_at(lambda s: s.b_enc, flat, flat.b_enc.at[:3].set(-1e6))
    found = evals.stability(flat, dead, none(), rows)["latents"]
    assert len(found["cosine"]["values"]) == 17 and not set(found["partners"]) & {0, 1, 2}
    smaller = FlatSAE(EMBED, 6, TopK(2), key=jax.random.key(1))
    assert len(evals.stability(flat, smaller, none(), rows)["latents"]["partners"]) <= 6
    assert set(evals.stability(flat, tree(0), none(), rows)) == {"latents"}


def test_levels_of_a_forest_are_matched_apart(rows):
    sae = pursuit((EXPERTS, ATOMS, 2), EMBED)
    roots = np.random.default_rng(0).permutation(EXPERTS)
    level = sae.forest.split(sae.rows)
    moved = [level[0][:, roots], *(a.reshape(EXPERTS, -1, EMBED)[roots] for a in level[1:])]
    other = with_rows(sae, np.concatenate([a.reshape(-1, EMBED) for a in moved]))
    found = evals.stability(sae, other, none(), rows)
    assert set(found) == {"parents", "level_1", "level_2"}
    for name, part in found.items():
        assert part["cosine"]["mean"] == pytest.approx(1, abs=1e-5), name
        assert part["f1"]["mean"] == pytest.approx(1, abs=1e-5) and np.mean(part["f1"]["null"]) < 0.9
    assert found["parents"]["partners"] != found["parents"]["cosine"]["units"]
    assert set(evals.stability(sae, tree(0), none(), rows)) == {"latents"}


def test_normalisers_are_undone(rows):
    """One SAE on standardised rows; its twin reads the rows themselves, with the scale in its weights."""
    sae = tree(0)
    x = rows.read(0, rows.rows)
    found = evals.stability(sae, sae, (CenterScale().fit(ArrayRows(x)), Identity()), rows)
    assert found["parents"]["cosine"]["mean"] == pytest.approx(1, abs=1e-5)
    assert found["subspaces"]["overlap"]["mean"] == pytest.approx(1, abs=1e-5)
    found = evals.stability(sae, sae, (Standardize().fit(ArrayRows(x)), Identity()), rows)
    assert found["subspaces"]["overlap"]["mean"] < 0.999


def test_everything_dead_is_undefined(rows):
    flat = FlatSAE(EMBED, 5, TopK(2), key=jax.random.key(0))
    dead = eqx.tree_at(lambda s: (s.W_enc, s.b_enc), flat, (flat.W_enc * 0, flat.b_enc * 0))
    found = evals.stability(flat, dead, none(), rows)["latents"]
    assert found["cosine"]["mean"] is found["f1"]["mean"] is found["above_0.7"] is None
    assert found["cosine"]["values"] == found["partners"] == []


def test_matching_has_the_largest_sum_of_cosines():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 5))
    order = rng.permutation(4)
    found = match(a, -a[order] * -3)
    assert order[found.second].tolist() == found.first.tolist() == [0, 1, 2, 3]
    assert found.cosine == pytest.approx(np.ones(4))
    # greedy takes the largest first and leaves a poor rest: 1 + 0 < 0.9 + 0.8
    first, second = np.array([[1.0, 0], [0.8, 0.6]]), np.array([[0.8, 0.6], [0.28, -0.96]])
    cosines = first @ second.T
    best = max(cosines[0, 0] + cosines[1, 1], cosines[0, 1] + cosines[1, 0])
    assert match(first, second).cosine.sum() == pytest.approx(best)
    assert match(np.zeros((2, 3)), np.ones((2, 3))).cosine.tolist() == [0, 0]


def test_agreement_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    a, b = (rng.exponential(size=(50, 6)) * (rng.random((50, 6)) < 0.4) for _ in range(2))
    a[:, 5] = b[:, 5] = 0
    f1, correlation = agreement(code_matrix(firings(a)), code_matrix(firings(b)))
    for i in range(5):
        both = np.sum((a[:, i] > 0) & (b[:, i] > 0))
        assert f1[i] == pytest.approx(2 * both / (np.sum(a[:, i] > 0) + np.sum(b[:, i] > 0)))
        assert correlation[i] == pytest.approx(np.corrcoef(a[:, i], b[:, i])[0, 1], abs=1e-5)
    assert np.isnan(f1[5]) and np.isnan(correlation[5])


def test_subspaces_equal_the_principal_angles_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3, 8)), rng.normal(size=(5, 3, 8))
    pairs = np.arange(5)
    found = subspaces(a, b, pairs, pairs, rng)
    for i in range(5):
        cosines = np.cos(subspace_angles(a[i].T, b[i].T))
        assert found["overlap"]["values"][i] == pytest.approx(np.mean(cosines**2))
        assert found["first_cosine"]["values"][i] == pytest.approx(cosines.max())
    mixed = np.einsum("est,etd->esd", rng.normal(size=(5, 3, 3)), a)
    assert subspaces(a, mixed, pairs, pairs, rng)["overlap"]["mean"] == pytest.approx(1)


def test_subspaces_of_lower_rank_and_of_none():
    a = np.zeros((2, 2, 4))
    a[0, 0, 0] = a[0, 1, 0] = 1.0  # rank 1
    b = np.zeros((2, 2, 4))
    b[0, 0, 0] = b[0, 1, 1] = b[1, 0, 0] = 1.0
    found = subspaces(a, b, np.arange(2), np.arange(2), np.random.default_rng(0))
    assert found["overlap"]["values"] == [pytest.approx(0.5), 0.0]
    assert found["first_cosine"]["values"] == [pytest.approx(1), 0.0]
    nothing = subspaces(a[1:], b[1:] * 0, np.arange(1), np.arange(1), np.random.default_rng(0))
    assert nothing["overlap"]["values"] == [None] and nothing["overlap"]["null"] == []


def test_other_widths_and_too_many_rows_are_one_sentence(rows):
    with pytest.raises(UserError, match="the second SAE reads vectors of 5 numbers"):
        evals.stability(tree(0), tree(0, embed=5), none(), rows)
    with pytest.raises(UserError, match="the rows have 3 and 4 numbers"):
        match(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(UserError, match="16,385 rows are to be matched"):
        match(np.ones((MOST + 1, 1)), np.ones((2, 1)))
