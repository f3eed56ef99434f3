"""Park et al.'s tests on a planted hierarchy of three levels, beside their nulls; interventions in a linear model."""

import json

import numpy as np
import pytest

from jhsae.teacher import (
    LDAEstimator,
    MeanEstimator,
    Ontology,
    ParkEstimator,
    Samples,
    Unembedding,
    Vocabulary,
    categories,
    interventions,
    theory,
)
from jhsae.teacher.theory import Category, consecutive, cosine, hierarchy, random_parents, simplex, unseen_parents

TOKENS = range(1000, 1400)


@pytest.fixture(scope="module")
def samples(world):
    tokens = [t for ids in world.vocabulary.ids.values() for t in ids]
    return Unembedding()(world.view(), world.concepts, [*tokens, *TOKENS])


@pytest.fixture(scope="module")
def found(world):
    return categories(world.ontology, world.vocabulary, least=4, rest=5)


@pytest.fixture(scope="module")
def tested(found, samples):
    return theory(found, MeanEstimator(), samples, seed=0)


def test_categories_are_all_levels_with_enough_tokens(found):
    parent = {c.id: c.parent for c in found}
    assert parent["root"] is None and parent["p2"] == "root" and parent["p2c1"] == "p2"
    assert len(found) == 1 + 4 + 12  # words alone have one token
    sizes = {c.id: len(c.tokens) for c in found}
    assert (sizes["root"], sizes["p0"], sizes["p0c0"]) == (144, 36, 12)


def test_of_two_parents_the_closer_one_counts_and_one_that_is_nearly_the_same_does_not():
    names = {i: i for i in "abcd"}
    words = {"a": tuple("123456"), "b": tuple("789"), "c": tuple("xyz"), "d": ("q",)}
    vocabulary = Vocabulary({w: (n,) for n, w in enumerate("123456789xyzq")}, {})
    ontology = Ontology(names, words, {"a": (), "b": ("a",), "c": ("a", "b"), "d": ("a",)})
    assert {c.id: c.parent for c in categories(ontology, vocabulary, 3, 3)} == {"a": None, "b": "a", "c": "b"}
    assert {c.id: c.parent for c in categories(ontology, vocabulary, 3, 4)}["c"] == "a"


def test_a_planted_hierarchy_is_orthogonal_and_its_nulls_are_not(tested):
    for name, n in (("hierarchy", 16), ("consecutive", 12)):
        assert abs(tested[name]["measured"]["median"]) < 0.2 and tested[name]["measured"]["n"] == n
        assert tested[name]["random_parent"]["median"] < -0.4
        # Of samples without a hierarchy a parent and a category that it has not seen are independent vectors w, p with
        # cos(w - p, p) = -|p| / sqrt(|w|^2 + |p|^2); with one, only what the other siblings add is between them.
        assert tested[name]["unseen_shuffled"]["median"] < tested[name]["unseen"]["median"] - 0.1
    # Two of three siblings, all of length 4: cos((P + a) - (P + (b + c) / 2), P + (b + c) / 2) = -8 / 24.
    assert tested["hierarchy"]["unseen"]["median"] == pytest.approx(-1 / 3, abs=0.1)


def test_siblings_are_the_corners_of_a_regular_simplex(tested):
    measured, shuffled = tested["simplex"]["measured"], tested["simplex"]["shuffled"]
    assert measured["n"] == 5 and measured["full_rank"] == 1.0
    assert measured["smallest"] > 0.85 and measured["smallest"] > shuffled["smallest"]
    assert measured["pairwise_cosine"] == pytest.approx(-0.5, abs=0.1)  # three corners around their centre


def test_results_are_json_and_the_same_again(found, samples, tested):
    assert json.loads(json.dumps(tested)) == tested
    assert theory(found, MeanEstimator(), samples, seed=0) == tested
    assert theory(found, ParkEstimator(), samples, seed=0)["hierarchy"]["measured"]["n"] == 16


def test_cosines_are_their_formulas():
    rng = np.random.default_rng(0)
    lines = {i: rng.normal(size=5) for i in "wpg"}
    w, p, g = lines.values()
    parent = {"w": "p", "p": "g"}
    above = {"w": p, "p": g}
    expected = (w - p) @ p / np.linalg.norm(w - p) / np.linalg.norm(p)
    assert hierarchy(parent, above, lines)[0] == pytest.approx(expected)
    expected = (w - p) @ (p - g) / np.linalg.norm(w - p) / np.linalg.norm(p - g)
    assert consecutive(parent, above, lines) == pytest.approx([expected])
    assert np.isnan(cosine(w, np.zeros(5)))


def test_a_flat_simplex_has_lost_a_dimension_and_two_siblings_are_none():
    lines = {"p": np.zeros(4), "a": np.eye(4)[0], "b": np.eye(4)[1], "c": -np.eye(4)[0]}
    lines["d"] = (lines["a"] + lines["b"]) / 2**0.5
    parent = dict.fromkeys("abcd", "p")
    flat = simplex(parent, lines)
    assert flat["full_rank"] == 0.0 and flat["smallest"] < 1e-9 and flat["n"] == 1
    assert simplex({"a": "p", "b": "p"}, lines) == {
        "smallest": None, "pairwise_cosine": None, "full_rank": None, "n": 0
    }  # fmt: skip


def test_unseen_parents_have_none_of_the_tokens(samples, found):
    apart = unseen_parents(found, MeanEstimator(), samples)
    tokens = {c.id: set(c.tokens) for c in found}
    rest = samples.of(sorted(tokens["p1"] - tokens["p1c0"]))
    np.testing.assert_allclose(apart["p1c0"], rest.mean(0))
    assert "root" not in apart


def test_random_parents_are_other_categories():
    few = (Category("a", "a", (1, 2)), Category("b", "b", (1,), "a"), Category("c", "c", (2,), "a"))
    assert random_parents(few, np.random.default_rng(0)) == {"b": "c", "c": "b"}
    assert random_parents(few[:2], np.random.default_rng(0)) == {}


def test_equal_samples_and_no_categories_are_undefined_not_wrong(found, samples):
    equal = Samples(samples.tokens, np.ones_like(samples.rows))
    result = theory(found, ParkEstimator(), equal, seed=0)
    assert result["hierarchy"]["measured"] == {"median": None, "quartile_1": None, "quartile_3": None, "n": 0}
    assert result["simplex"]["measured"]["n"] == 0
    assert theory((), ParkEstimator(), samples, seed=0)["consecutive"]["unseen"]["n"] == 0


@pytest.mark.parametrize("estimator", [ParkEstimator(), LDAEstimator()], ids=lambda e: type(e).__name__)
def test_contrasts_move_the_logits_of_held_out_words_in_a_linear_model(world, samples, estimator):
    """Logits are products with the unembedding, so what moves them is the geometry alone."""

    def steer(added):
        return 3.0 + added @ world.unembedding.T

    lemmas = world.vocabulary.lemmas()
    arguments = (world.concepts, estimator, samples, lemmas, world.geometry)
    found = interventions(*arguments, steer, pairs=10, seed=0)
    for name in ("target_sibling", "target_unrelated"):
        assert found[name]["n"] == 10
        assert found[name]["quartile_1"] > 0.3
        assert abs(found[f"{name}_random"]["median"]) < 0.5 * found[name]["median"]
    assert found["sibling_unrelated"]["median"] < 0
    assert interventions(*arguments, steer, pairs=10, seed=0) == found
    assert interventions(*arguments, steer, pairs=40, seed=0)["target_sibling"]["n"] == 24  # all there are
    none = interventions(world.concepts, estimator, samples, dict.fromkeys(lemmas, "one"), world.geometry, steer, 5, 0)
    assert none["target_sibling"]["median"] is None and none["target_sibling"]["n"] == 0


def test_both_directions_are_added_at_unit_norm(world, samples):
    seen = []

    def steer(added):
        seen.append(np.linalg.norm(added, axis=1))
        return np.zeros((len(added), len(world.unembedding)))

    interventions(world.concepts, ParkEstimator(), samples, world.vocabulary.lemmas(), world.geometry, steer, 20, 0)
    assert all(norms[0] == 0 for norms in seen) and sum(len(norms) - 1 for norms in seen) == 40
    np.testing.assert_allclose(np.concatenate([norms[1:] for norms in seen]), 1.0)
