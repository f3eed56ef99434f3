"""Absorption: a planted one is found at its rate, none where there is none, and nothing in the null."""

from dataclasses import replace

import numpy as np
import pytest
from labelled import firings, topk_noise

from jhsae import evals
from jhsae.errors import UserError
from jhsae.evals import AbsorptionRules, RowLabels
from jhsae.evals.absorption import split_size, token_absorption
from jhsae.evals.groups import code_matrix
from jhsae.sae import Forest

CLASSES, WORDS, REPEATS, EMBED = 3, 12, 5, 24
RULES = AbsorptionRules()


def world(absorbed=0, seed=0):
    """Class c has the direction c; its main latent c is off on its last `absorbed` words, which have latents instead.

    A word's own latent is (class + its own direction) / sqrt(2), and its code is sqrt(2): the activation is unchanged.
    """
    word = np.random.default_rng(seed).permutation(np.repeat(np.arange(CLASSES * WORDS), REPEATS))
    own = word // WORDS
    names = tuple("abc")
    basis = np.eye(CLASSES + CLASSES * WORDS)
    classes, words = basis[:CLASSES], basis[CLASSES:]
    taken = word % WORDS >= WORDS - absorbed
    codes = np.zeros((len(word), CLASSES + CLASSES * WORDS))
    codes[np.arange(len(word)), own] = np.where(taken, 0, 1)
    codes[np.arange(len(word)), CLASSES + word] = np.where(taken, np.sqrt(2), 1)
    taken_words = np.arange(CLASSES * WORDS) % WORDS >= WORDS - absorbed
    parents = np.repeat(classes, WORDS, axis=0)
    rows = np.where(taken_words[:, None], (parents + words) / np.sqrt(2), words)
    dictionary = np.concatenate([classes, rows]).astype(np.float32)
    x = (codes @ dictionary).astype(np.float32)
    return RowLabels(names, own.astype(np.int32), word.astype(np.int64)), codes, dictionary, x, classes


def measure(found, codes, dictionary, x, probes, tree=None, **options):
    return evals.absorption(firings(codes), dictionary, x, found, probes, tree, **options)["groups"]


def test_no_absorption_where_the_main_latents_do_the_work():
    own = measure(*world())["latents"]
    assert own["main_latents"] == [[0], [1], [2]]
    assert own["full"]["values"] == own["fraction"]["values"] == [0.0] * CLASSES
    assert own["full"]["null"] == [None] * (CLASSES - 1)  # no probe fires on another class


def test_planted_absorption_is_found_at_its_rate_and_not_by_other_probes():
    data = world(absorbed=4)
    own = measure(*data)["latents"]
    half = data[0].half(0)
    taken = data[0].words % WORDS >= WORDS - 4
    expected = [np.mean(taken[~half & (data[0].classes == c)]) for c in range(CLASSES)]
    assert 0.1 < np.mean(expected) < 0.6
    assert own["full"]["values"] == pytest.approx(expected)
    assert own["fraction"]["values"] == pytest.approx(expected)
    assert own["full"]["null"] == own["fraction"]["null"] == [None, None]
    assert [m[0] for m in own["main_latents"]] == [0, 1, 2] and sum(own["tokens"]) == np.sum(~half)


def test_where_there_is_nothing_the_rates_are_those_of_the_null():
    """Random codes and probes: SAEBench's rules find absorption all the same, which the null shows."""
    found = world()[0]
    found = replace(found, classes=found.permuted(3).classes, names=tuple("abc"))
    rng = np.random.default_rng(0)
    dictionary, codes = rng.normal(size=(40, EMBED)), topk_noise(len(found.classes), 40, 4)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    own = measure(found, codes, dictionary, codes @ dictionary, rng.normal(size=(CLASSES, EMBED)))["latents"]
    assert own["full"]["mean"] > 0.2 and own["fraction"]["mean"] > 0.2
    assert own["full"]["mean"] == pytest.approx(np.mean(own["full"]["null"]), abs=0.2)
    assert own["fraction"]["mean"] == pytest.approx(np.mean(own["fraction"]["null"]), abs=0.2)


def test_the_length_of_probes_and_rows_does_not_matter():
    found, codes, dictionary, x, probes = world(absorbed=4)
    expected = measure(found, codes, dictionary, x, probes)["latents"]
    own = measure(found, codes / 3, dictionary * 3, x, probes * np.array([[1e-3], [5.0], [70.0]]))["latents"]
    assert own["full"]["values"] == expected["full"]["values"]


def tokens(values, cosines, projection, main=(0,)):
    """One token: its codes, the cosines of unit rows with the probe, its projection."""
    cosines = np.asarray(cosines)
    rows = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    codes = code_matrix(firings(np.array([values], np.float64))).tocsr()
    return [
        a.item() for a in token_absorption(codes, rows, np.array([[projection, 0.0]]), np.eye(2)[0], [*main], RULES)
    ]


@pytest.mark.parametrize(
    ("values", "cosines", "projection", "full", "fraction"),
    [
        ([0, 1, 0], [1, 0.5, 0], 1.0, True, 1.0),
        ([0, 1, 0], [1, 0.39, 0], 1.0, False, 0.0),  # too small a part of the projection
        ([0.1, 1, 0], [1, 0.5, 0], 1.0, False, 0.5 / 0.6),  # a main latent fires
        ([0, 20, 0], [1, 0.02, 0], 0.5, False, 0.0),  # not along the probe
        ([0, 20, 0], [1, 0.05, 0], 1.0, True, 0.0),  # enough for full absorption, not for the fraction
        ([0, 1, 0], [1, 0.5, 0], -1.0, False, 0.0),
        ([0, 1, 0], [1, 0.5, 0], 0.0, False, 0.0),
        ([0, 0, 0], [1, 0.5, 0], 1.0, False, 0.0),
        ([0.8, 1, 0], [1, 0.5, 0], 1.0, False, 0.2),  # at most what the main latent leaves
        ([1.2, 1, 0], [1, 0.5, 0], 1.0, False, 0.0),
    ],
)
def test_the_rules_by_hand(values, cosines, projection, full, fraction):
    assert tokens(values, cosines, projection) == [full, pytest.approx(fraction)]


def test_at_most_three_absorbers_count():
    assert tokens([0, 1, 1, 1, 1], [1, 0.12, 0.12, 0.12, 0.12], 1.0)[1] == 0.0
    assert tokens([0, 1, 1, 1, 1], [1, 0.14, 0.14, 0.14, 0.14], 1.0)[1] == 1.0


@pytest.mark.parametrize(
    ("f1", "size"), [([], 0), ([0.9], 1), ([0.5, 0.52], 1), ([0.5, 0.6, 0.65, 0.66], 3), ([0.5, 0.4, 0.9], 1)]
)
def test_splits_end_where_f1_stops_to_jump(f1, size):
    assert split_size(f1, 0.03) == size


def test_main_latents_of_a_split_class():
    """The class fires one of two latents; both are its main ones, and none is absorbed."""
    found, codes, dictionary, x, probes = world()
    rng = np.random.default_rng(1)
    moved = (found.classes == 0) & (rng.random(len(x)) < 0.5)
    codes = np.concatenate([codes, np.where(moved, codes[:, 0], 0)[:, None]], axis=1)
    codes[moved, 0] = 0
    own = measure(found, codes, np.concatenate([dictionary, dictionary[:1]]), x, probes)["latents"]
    assert sorted(own["main_latents"][0]) == [0, codes.shape[1] - 1] and own["full"]["values"][0] == 0


def test_main_latents_among_parents_and_absorbers_anywhere():
    data = world(absorbed=4)
    tree = Forest((CLASSES, WORDS))
    own = measure(*data, tree=tree)
    assert set(own) == {"all", "parents"}
    assert own["parents"]["main_latents"] == [[0], [1], [2]]
    assert own["parents"]["full"]["mean"] > 0.1


def test_dead_latents_zero_probes_and_wrong_shapes():
    found, codes, dictionary, x, probes = world(absorbed=4)
    dead = measure(found, codes * 0, dictionary, x, probes)["latents"]
    assert dead["full"]["values"] == [None] * CLASSES and dead["full"]["mean"] is None
    zero = measure(found, codes, dictionary, x, probes * np.array([[0], [1], [1]]))["latents"]
    assert zero["full"]["values"][0] is None and zero["full"]["values"][1] > 0
    with pytest.raises(UserError, match=r"the probes have shape \[2, 39\], expected \[3, 39\]"):
        measure(found, codes, dictionary, x, probes[:2])
    with pytest.raises(UserError, match="the dictionary has shape"):
        measure(found, codes, dictionary[1:], x, probes)
    with pytest.raises(UserError, match="the dictionary has shape"):
        measure(found, codes, dictionary[:, :5], x, probes)
