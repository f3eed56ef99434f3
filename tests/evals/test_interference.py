"""Tree agreement, absorption, hedging, violations, siblings and splitting: known answers, and plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from trees import DEPTH3, by_hand, cut, magnitudes, orthonormal

from jhsae import evals
from jhsae.data import Identity
from jhsae.errors import UserError
from jhsae.evals.nulls import permuted_parents
from jhsae.evals.truth import agreement
from jhsae.evals.truth.agreement import summary
from jhsae.evals.truth.forest import levels_of, tops_of
from jhsae.evals.truth.interference import Absorption, Violations, hedging, siblings
from jhsae.worlds import Hierarchy

PAIR = Hierarchy.of_parents([-1, 0])
GRAPH = Hierarchy(7, ((0, 2), (1, 2), (0, 3), (2, 4), (3, 4), (1, 5)))  # 2 and 4 have two parents; 6 is alone


def csr(*columns) -> sparse.csr_array:
    return sparse.csr_array(np.array(columns, float).T)


def climbs(latent, parents):
    """The latent, its parent, and so on."""
    while latent >= 0:
        yield latent
        latent = parents[latent]


def agrees_by_loops(kind, latent_of, parents, hierarchy):
    found = []
    for feature in range(hierarchy.size):
        if not hierarchy.above[feature]:
            continue
        roots = {int(a) for a in np.flatnonzero(hierarchy.ancestors[feature]) if not hierarchy.above[a]}
        over = roots if kind == "tree" else set(hierarchy.above[feature])
        wanted = {int(latent_of[a]) for a in over if latent_of[a] >= 0}
        latent = latent_of[feature]
        own = -1 if latent < 0 else list(climbs(latent, parents))[-1] if kind == "tree" else parents[latent]
        found.append(own in wanted)
    return found


@pytest.mark.parametrize("kind", ["tree", "edges"])
@pytest.mark.parametrize("hierarchy", [Hierarchy.of_parents(DEPTH3), GRAPH], ids=["forest", "graph"])
def test_agreement_equals_loops(kind, hierarchy):
    some = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        parents = np.array([-1, -1, *(rng.integers(0, i) for i in range(2, 10))])
        latent_of = rng.permutation(np.concatenate([np.arange(10), np.full(5, -1)]))[: hierarchy.size]
        found = agreement(kind, latent_of, parents, hierarchy, 3, seed)
        assert found.agrees.tolist() == agrees_by_loops(kind, latent_of, parents, hierarchy)
        dealt = np.random.default_rng(seed)
        for row in found.null:
            own = permuted_parents(parents, dealt)
            assert row.tolist() == agrees_by_loops(kind, latent_of, own, hierarchy)
        some += found.agrees.sum()
    assert some > 5


def test_a_graph_counts_any_true_parent_and_root():
    for parent_of_2, edges in [(0, True), (1, True), (6, False)]:
        parents = np.array([-1, -1, parent_of_2, 0, 3, 1, -1])
        found = {kind: agreement(kind, np.arange(7), parents, GRAPH, 2).agrees for kind in ("tree", "edges")}
        assert found["edges"].tolist() == [edges, True, True, True] and found["tree"][0] == edges
    assert summary("tree", agreement("tree", np.arange(3), np.full(3, -1), Hierarchy(3), 2), Hierarchy(3)) is None


def test_tops_and_levels_of_a_chain():
    parents = np.array([-1, 0, 1, 2, 3, 4, 5, 6, -1])
    assert tops_of(parents).tolist() == [0] * 8 + [8]
    assert levels_of(parents).tolist() == [*range(8), 0]
    assert tops_of(np.zeros(0, int)).tolist() == []


BOTH, ALONE = np.array([1.0, 1, 1, 1, 0, 0, 0, 0]), np.ones(8)  # the child is on in 4 of 8 tokens, the parent in all
ROWS = np.array([[1.0, 0], [0.7, 0.7]])  # the child's latent holds the parent's direction
AXES = np.eye(2)


@pytest.mark.parametrize(
    ("parent_code", "hard", "excess", "soft"),
    [
        (ALONE, 0, 0, 0),
        (1 - BOTH, 1, 1, 1),  # absorbed
        (1 - BOTH / 2, 0, 0, 0.5),
        (1 - BOTH / 4, 0, 0, 0.25),
        (np.array([0.0, 1, 1, 1, 1, 1, 1, 1]), 0.25, 0.25, 0.25),
        (np.array([0.0, 1, 1, 1, 0, 1, 1, 1]), 0.25, 0, 0),  # misses one token in four, whatever the child does
        (1 + BOTH, 0, 0, -1),
        (BOTH, None, None, None),  # never on alone: no detector of the parent
        (0 * ALONE, None, None, None),
    ],
)
def test_absorption_of_hand_made_codes(parent_code, hard, excess, soft):
    sums = Absorption(PAIR, np.array([0, 1]))
    size = 3 * ALONE  # the true magnitude of the parent: codes are compared relative to it
    for part in (slice(0, 5), slice(5, 8)):
        sums.add(csr(size[part], BOTH[part]), csr(3 * parent_code[part], BOTH[part]))
    found = sums.summary(ROWS, AXES, 0.3)
    assert found["soft"] == (None if soft is None else pytest.approx(soft))
    assert found["hard"] == pytest.approx(hard or 0) and found["hard_excess"] == pytest.approx(excess or 0)
    assert sums.summary(ROWS, AXES, 0.9)["hard"] == 0, "a child's latent without the parent's direction absorbs nothing"


def test_absorption_has_no_answer_without_tokens_to_compare():
    always = Absorption(PAIR, np.array([0, 1]))
    always.add(csr(ALONE, ALONE), csr(0 * ALONE, ALONE))
    never = Absorption(PAIR, np.array([0, 1]))
    never.add(csr(ALONE, 0 * ALONE), csr(ALONE, 0 * ALONE))
    unmatched = Absorption(PAIR, np.array([0, -1]))
    unmatched.add(csr(ALONE, BOTH), csr(ALONE))
    for sums in (always, never, unmatched):
        found = sums.summary(ROWS, AXES, 0.3)
        assert found == {"hard": None, "hard_pairs": 0, "hard_excess": None, "soft": None, "soft_pairs": 0}


def test_absorption_equals_loops_on_random_codes():
    rng, tree = np.random.default_rng(0), Hierarchy.of_parents([-1, 0, 0, 1])
    truth = magnitudes(tree, 300, seed=1)
    codes = (rng.random((300, 5)) < 0.6) * rng.random((300, 5))
    latent_of = np.array([2, 4, 0, 1])
    sums = Absorption(tree, latent_of)
    sums.add(sparse.csr_array(truth), sparse.csr_array(codes))
    expected = []
    for parent, child in tree.edges:
        p, c, a, b = truth[:, parent], truth[:, child], codes[:, latent_of[parent]], codes[:, latent_of[child]]
        crowd = truth[:, list(tree.below[parent])].any(axis=1)
        with_, without, alone = (p > 0) & (c > 0), (p > 0) & (c == 0), (p > 0) & ~crowd
        lost = (a == 0) & (b > 0)
        expected.append(
            (
                lost[with_].mean() - lost[without].mean(),
                lost[with_].mean() - (a[alone] == 0).mean(),
                1 - (a[with_] / p[with_]).mean() / (a[alone] / p[alone]).mean(),
            )
        )
    found = sums.summary(np.ones((5, 3)), np.ones((4, 3)), 0.3)
    got = [found["hard"], found["hard_excess"], found["soft"]]
    assert got == pytest.approx(np.mean(expected, axis=0).tolist())


@pytest.mark.parametrize("angle", [0, 20, 45, 90])
def test_hedging_is_the_squared_sine_of_a_known_angle(angle):
    """Two parents: one turned towards its child by the angle, one towards a feature that is none."""
    axes, t = np.eye(6), np.radians(angle)
    hierarchy = Hierarchy.of_parents([-1, -1, 0, 1])
    rows = axes.copy()
    rows[0] = 3 * (np.cos(t) * axes[0] + np.sin(t) * axes[2])
    rows[1] = np.cos(t) * axes[1] + np.sin(t) * axes[5]
    found = hedging(rows, axes[:4], hierarchy, np.arange(4))
    assert found["hedging"] == pytest.approx(np.sin(t) ** 2 / 2)
    assert found["chance"] == pytest.approx(np.sin(t) ** 2 / 5) and found["latents"] == 2


def test_hedging_removes_the_features_own_direction_first():
    """Of a child that is not orthogonal to its parent the part along it is no hedging, nor is a child along it."""
    features = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [2.0, 0, 0]])
    perfect = hedging(features, features, Hierarchy.of_parents([-1, 0, 0]), np.arange(3))
    assert perfect["hedging"] == pytest.approx(0, abs=1e-12)
    none = hedging(features, features, Hierarchy.of_parents([-1, 0, 0]), np.full(3, -1))
    assert none == {"hedging": None, "chance": None, "latents": 0}


def test_random_latents_hedge_as_much_as_chance():
    rng = np.random.default_rng(0)
    parents = np.repeat([-1, *range(100)], [100, *[3] * 100])
    features = rng.normal(size=(400, 32))
    found = hedging(rng.normal(size=(400, 32)), features, Hierarchy.of_parents(parents.tolist()), np.arange(400))
    assert found["hedging"] == pytest.approx(found["chance"], rel=0.15) and found["hedging"] > 0.05


def test_violations_by_hand():
    counted = Violations(np.array([-1, 0, 0, 1]))
    assert counted.rate() is None
    counted.add(csr([1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]))
    assert counted.rate() == pytest.approx(2 / 5)
    assert Violations(np.array([-1, -1])).rate() is None


def test_siblings_by_hand():
    rows = np.array([[1.0, 0], [1, 0], [0, 2], [-1, -1], [1, 0], [0, 0], [3, 4]])
    found = siblings(rows, np.array([-1, 0, 0, 0, 4, 4, 1]))
    assert found["largest"] == pytest.approx(np.sqrt(0.5)) and found["parents"] == 1
    assert found["mean"] == pytest.approx(2 * np.sqrt(0.5) / 3)
    assert siblings(rows, np.full(7, -1)) == {"largest": None, "mean": None, "parents": 0}


def test_splitting_tells_copies_from_shares():
    """Of feature 0 the second SAE has two copies, the third two latents that share its tokens."""
    features = orthonormal(3)
    codes = magnitudes(Hierarchy(3), 400)
    extra = orthonormal(4)[3]
    x = codes @ features + np.where(np.arange(400) % 2, 2.0, -2.0)[:, None] * (codes[:, :1] > 0) * extra
    halves = np.stack([features[0] + extra, features[0] - extra])
    saes = [
        by_hand(features, [-1] * 3),
        by_hand(np.concatenate([features, features[:1]]), [-1] * 4, least=0.05),
        by_hand(np.concatenate([features[1:], halves]), [-1] * 4),
    ]
    found = evals.splitting([(sae, Identity()) for sae in saes], features, iter(cut(x.astype(np.float32), codes)))
    assert found.best.tolist() == [[1, 1, 1], [2, 1, 1], [2, 1, 1]]
    assert found.tracking.tolist() == [[1, 1, 1], [2, 1, 1], [2, 1, 1]]
    assert found.together.tolist() == [[0, 0, 0], [2, 0, 0], [0, 0, 0]]
    table = found.rows()
    assert [row["split"] for row in table] == [0, 1, 1] and [row["latents"] for row in table] == [3, 4, 4]
    assert table[1]["together"] == pytest.approx(2 / 3) and table[0]["best"] == 1 and table[0]["features"] == 3
    for saes_, batches, words in [
        ([], cut(x, codes), "both"),
        (saes, [], "both"),
        (saes, [(x, codes[:5])], "expected"),
    ]:
        with pytest.raises(UserError, match=words):
            evals.splitting([(sae, Identity()) for sae in saes_], jnp.asarray(features), batches)
