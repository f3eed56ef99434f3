"""Significance: rates over seeds, known p-values, what each null keeps, and tests of others that cannot fail."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.evals import compare, delta_off_90, nulls, orthogonality, orthogonality_units, sentence
from jhsae.evals.truth.forest import levels_of
from jhsae.metric import Euclidean
from jhsae.sae import mixture_of_experts_v2

CHANCE = "not distinguishable from chance"
PARENTS = np.array([-1, -1, -1, *np.repeat(range(3), 4), *np.repeat(range(3, 15), 2)])


@pytest.fixture(scope="module")
def rates():
    path = Path(__file__).parents[2] / "experiments" / "nulls" / "rates.py"
    spec = importlib.util.spec_from_file_location("null_rates", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ROOTS, module.CHILDREN, module.GRANDCHILDREN, module.EMBED = 4, 3, 3, 24
    return module


@pytest.mark.slow
def test_what_is_nothing_is_called_chance_and_a_planted_hierarchy_is_found(rates):
    """50 seeds each. Agreement is a small count, whose ties make its test hold fewer than 5 % false claims."""
    found = {kind: [rates.measured(kind, seed, 99) for seed in range(50)] for kind in rates.KINDS}
    claims = {
        (kind, name): sum(seed[name]["against"] < nulls.LEVEL for seed in seeds)
        for kind, seeds in found.items()
        for name in seeds[0]
    }
    for (kind, name), count in claims.items():
        assert count >= 48 if kind == "planted" else count <= 4, (kind, name, count)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_the_p_value_is_exact(alternative):
    """Of exchangeable values without ties, 5 % have a p of at most 0.05."""
    rng = np.random.default_rng(0)
    p = [
        nulls.permutation_p(v[0], v[1:], alternative) for v in rng.normal(size=(4000, 200))
    ]  # 10 / 200, or 2 * 5 / 200
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.01)


def test_the_angle_of_random_vectors_has_the_nominal_rate():
    parents, p = PARENTS[:15], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(15, 8))
        drawn = [delta_off_90(rows, own).mean() for own in nulls.many_permuted_parents(parents, rng, 39)]
        p.append(nulls.permutation_p(delta_off_90(rows, parents).mean(), np.array(drawn), "less"))
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08


def test_the_numbers_of_a_comparison():
    null = np.arange(100.0)
    found = compare(np.array([94.5, 96.5]), null, alternative="greater")
    assert found.estimate == 95.5 and found.null == 49.5 and found.difference == 46
    assert found.p == 5 / 101 and found.significant and found.draws == 100 and found.units == found.groups == 2
    assert found.z == pytest.approx(46 / null.std()) and found.effect == pytest.approx(46)
    assert (found.low, found.high) == (94.5, 96.5)
    assert compare(np.array([95.5]), null, alternative="less").p == 97 / 101
    assert compare(np.array([95.5]), null, alternative="two-sided").p == 10 / 101
    assert compare(np.array([95.5]), null, alternative="greater").effect is None
    per_unit = compare(np.array([True, True]), np.zeros((39, 2), bool), alternative="two-sided")
    assert per_unit.p == 2 / 40 and not per_unit.significant and per_unit.effect is per_unit.z is None


def test_sentences():
    good = sentence(compare(np.array([3.0, 4.0, 5.0]), np.linspace(0, 1, 99), alternative="greater"), "tree agreement")
    assert good.startswith("tree agreement: 4 (95 % interval 3") and CHANCE not in good
    assert "against 0.5 by chance (difference 3.5, " in good and "p = 0.01, one-sided, greater, 99 draws)." in good
    bad = sentence(compare(np.array([0.2, 0.7]), np.linspace(0, 1, 99), alternative="two-sided"), "edges")
    assert bad.startswith(f"edges: {CHANCE}: 0.45 (") and "two-sided" in bad and "\n" not in bad


def test_the_interval_covers_the_mean_and_nested_units_widen_it():
    rng, null = np.random.default_rng(0), np.linspace(-1, 1, 39)
    covered = wider = 0
    for seed in range(100):
        centres = rng.normal(size=30)
        values, groups = np.repeat(centres, 10) + 0.1 * rng.normal(size=300), np.repeat(np.arange(30), 10)
        nested = compare(values, null, alternative="two-sided", groups=groups, seed=seed)
        flat = compare(values, null, alternative="two-sided", seed=seed)
        covered += nested.low <= 0 <= nested.high
        wider += nested.high - nested.low > 2 * (flat.high - flat.low)
        assert nested.groups == 30 and "in 30 groups" in sentence(nested, "x") and nested.estimate == flat.estimate
    assert covered >= 86 and wider == 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measured": np.zeros(0)}, r"measured has shape \(0,\), expected at least one value"),
        ({"measured": np.zeros((2, 2))}, r"measured has shape \(2, 2\)"),
        ({"measured": np.array([1, np.nan])}, "measured has values that are not finite"),
        ({"null": np.full(50, np.inf)}, "null has values that are not finite"),
        ({"null": np.zeros(10)}, "null has 10 draws, of which no greater p-value below 0.05 can come"),
        ({"null": np.zeros(38), "alternative": "two-sided"}, "at least 39"),
        ({"null": np.zeros((50, 3))}, r"expected \[draws\] or \[draws, 2\]"),
        ({"groups": np.arange(3)}, "one group per value"),
        ({"resamples": 10}, "resamples is 10, expected at least 2,000"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(change, words):
    arguments = {"measured": np.zeros(2), "null": np.zeros(50), "alternative": "greater"} | change
    with pytest.raises(UserError, match=words):
        compare(arguments.pop("measured"), arguments.pop("null"), **arguments)


def test_each_null_keeps_what_it_says_and_destroys_the_rest():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    dealt = nulls.permuted_labels(labels, rng)
    assert sorted(dealt) == sorted(labels) and not np.array_equal(dealt, labels)
    rows = rng.normal(size=(20, 4))
    shuffled = nulls.shuffled_rows(rows, rng)
    assert {tuple(r) for r in shuffled} == {tuple(r) for r in rows} and not np.allclose(shuffled, rows)
    turned = nulls.random_directions(rows, rng)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(rows, axis=1))
    assert abs(np.mean(np.sum(turned * rows, axis=1))) < 1 and turned.dtype == rows.dtype
    levels, counts = levels_of(PARENTS), np.bincount(PARENTS[3:])
    for null in (nulls.permuted_parents, nulls.sibling_swap):
        own = null(PARENTS, rng)
        assert np.array_equal(levels_of(own), levels) and np.array_equal(np.bincount(own[3:]), counts)
        assert not np.array_equal(own, PARENTS)
    moved = nulls.sibling_swap(PARENTS, rng) != PARENTS
    assert np.bincount(PARENTS[moved], minlength=15).tolist() == [1] * 15, "one child of each parent"
    one = np.array([-1, 0, 0])
    assert np.array_equal(nulls.sibling_swap(one, rng), one) and np.array_equal(nulls.permuted_parents(one, rng), one)
    assert nulls.permuted_parents(np.zeros(0, int), rng).shape == (0,)
    np.testing.assert_array_equal(nulls.random_directions(np.zeros((2, 3)), rng), 0)


def test_flipped_signs_are_the_null_of_paired_differences():
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(12), 3)
    for shift, at_chance in ((0.0, True), (1.0, False)):
        differences = shift + np.repeat(rng.normal(size=12), 3) * 0.3 + 0.1 * rng.normal(size=36)
        drawn = nulls.sign_flips(differences - differences.mean() + shift, rng, 999, names)
        found = compare(differences - differences.mean() + shift, drawn, alternative="two-sided", groups=names)
        assert (CHANCE in sentence(found, "difference")) == at_chance and found.groups == 12
    means = nulls.sign_flips(np.array([1.0, 2.0, 4.0]), rng, 500)
    assert set(np.round(3 * np.abs(means)).tolist()) == {7, 5, 3, 1}  # every pair of signs of 1, 2 and 4
    together = nulls.sign_flips(np.array([1.0, 2.0, 4.0]), rng, 500, np.array([0, 0, 1]))
    assert set(np.round(3 * np.abs(together)).tolist()) == {7, 1}
    assert np.array_equal(nulls.sign_flips(np.zeros(0), rng, 3), np.zeros(3))


def test_orthogonality_can_be_compared():
    sae = mixture_of_experts_v2(24, 30, 2, 3, 2, key=jax.random.key(0))
    units = orthogonality_units(sae, Euclidean(), np.ones(120), most=29)
    found = compare(units.own, units.null_means, alternative="less", groups=units.experts)
    assert found.groups == 30 and found.units == 90 and found.draws == 29
    assert found.estimate == orthogonality(sae, Euclidean(), np.ones(120))["parent_child_off_90_mean"]
    assert CHANCE in sentence(found, "orthogonality")


def unit_vectors(seed, count=60, embed=16):
    rows = np.random.default_rng(seed).normal(size=(count, embed))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


FLAT = np.repeat([-1, *range(12)], [12, *[4] * 12])  # 12 parents of 4 children


def against_other_parents(rows, seed=0):
    rng = np.random.default_rng(seed)
    drawn = np.array([delta_off_90(rows, own) for own in nulls.many_permuted_parents(FLAT, rng, 99)])
    return compare(delta_off_90(rows, FLAT), drawn, alternative="less", groups=FLAT[12:])


def test_the_angle_of_child_minus_parent_passes_80_degrees_for_random_unit_vectors():
    """PolytopeSAE's test: 100 % pass, median 135 degrees. Beside random parents nothing is left of it."""
    rows = unit_vectors(0)
    delta = rows[12:] - rows[FLAT[12:]]
    cosine = np.sum(delta * rows[FLAT[12:]], axis=1) / np.linalg.norm(delta, axis=1)
    angle = np.degrees(np.arccos(cosine))
    assert np.all(angle >= 90) and np.median(angle) == pytest.approx(135, abs=5)
    between = np.degrees(np.arccos(np.sum(rows[12:] * rows[FLAT[12:]], axis=1)))
    np.testing.assert_allclose(angle, 90 + between / 2)
    assert CHANCE in sentence(against_other_parents(rows), "child minus parent")


def test_mismatched_parents_are_closer_to_90_degrees_than_true_ones():
    """Its controls keep child - own parent, and beat the claim for true and for random unit vectors."""
    for tied in (0.0, 1.0):
        rows = unit_vectors(1)
        rows[12:] = rows[12:] + tied * rows[FLAT[12:]]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        delta = rows[12:] - rows[FLAT[12:]]
        delta /= np.linalg.norm(delta, axis=1, keepdims=True)

        def off(parents, rows=rows, delta=delta):
            return np.abs(np.degrees(np.arccos(np.sum(delta * rows[parents], axis=1))) - 90)

        own, control = off(FLAT[12:]), off((FLAT[12:] + 1) % 12)
        assert np.all(own < 90) and np.median(90 + own) >= 80 and np.median(control) < np.median(own)
        rng = np.random.default_rng(0)
        drawn = np.array([off(rng.permutation(FLAT[12:])) for _ in range(99)])
        kept = compare(own, drawn, alternative="less", groups=FLAT[12:])
        assert kept.p == 1 and CHANCE in sentence(kept, "orthogonality with unit vectors")


def test_leakage_is_k_and_purity_needs_labels_that_are_permuted():
    """The number of active parents is k for any TopK SAE; purity of random codes is at chance, of planted ones not."""
    rng, k = np.random.default_rng(0), 2
    labels = np.repeat(np.arange(5), 40)
    noise = rng.random((200, 10))
    planted = noise + 5 * (labels[:, None] == np.arange(10) % 5)
    for scores, at_chance in [(noise, True), (planted, False)]:
        top = np.zeros_like(scores, bool)
        np.put_along_axis(top, np.argsort(-scores, axis=1)[:, :k], True, axis=1)
        assert np.all(top.sum(axis=1) == k), "leakage: the same for a good SAE and a random one"

        def purity(own, top=top):
            counts = np.array([np.bincount(own[t], minlength=5) for t in top.T])
            return counts.max(axis=1) / counts.sum(axis=1)

        drawn = np.array([purity(nulls.permuted_labels(labels, rng)) for _ in range(199)])
        found = compare(purity(labels), drawn, alternative="greater")
        assert (CHANCE in sentence(found, "purity")) == at_chance


def test_differences_are_paired_by_unit_and_seed():
    rng = np.random.default_rng(0)
    base = [{f"c{i}": float(v) for i, v in enumerate(rng.normal(size=20))} for _ in range(3)]
    more = [{unit: value + 1 for unit, value in seed.items()} for seed in base]
    found = nulls.paired(more, base)
    assert found.estimate == pytest.approx(1) and found.significant and (found.units, found.groups) == (60, 20)
    assert nulls.paired(base, more).estimate == pytest.approx(-1)
    noise = [{unit: value + e for (unit, value), e in zip(s.items(), rng.normal(size=20), strict=True)} for s in base]
    assert not nulls.paired(noise, base).significant
    assert nulls.paired([{"a": 1.0, "b": None, "c": 2.0}], [{"a": 0.5, "b": 1.0, "d": 1.0}]).units == 1
    assert nulls.paired([{"a": None}], [{"a": 1.0}]) is None and nulls.paired([{}], [{}]) is None
