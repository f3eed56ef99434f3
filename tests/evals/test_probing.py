"""k-sparse probing: pure latents, noise at chance, one-word latents that do not count, and scikit-learn's solution."""

import numpy as np
import pytest
from labelled import CLASSES, firings, labels, topk_noise
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from jhsae import evals
from jhsae.errors import UserError
from jhsae.evals import RowLabels
from jhsae.evals.probing import class_tasks
from jhsae.sae import Forest
from jhsae.teacher.logistic import scores


def probed(dense, found, x=None, tree=None, **options):
    x = dense.astype(np.float32) if x is None else x
    return evals.sparse_probing(firings(dense), x, found, tree, **{"ks": (1, 2), "seeds": 2, **options})["probes"]


def one_hot(of):
    return (of[:, None] == np.unique(of)) * 1.0


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("C", [0.1, 1.0, 30.0])
def test_the_probe_is_that_of_scikit_learn(C, balanced):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 7))
    positive = x @ rng.normal(size=7) + rng.normal(size=200) > 1
    ours = evals.logistic(x, positive, C, balanced)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=5000, class_weight="balanced" if balanced else None)
    theirs.fit(x, positive)
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=1e-4)
    assert ours.bias == pytest.approx(theirs.intercept_[0], abs=1e-4)
    predicted = ours(x) > 0
    assert scores(predicted, positive) == pytest.approx(
        (accuracy_score(positive, predicted), f1_score(positive, predicted))
    )


def test_a_probe_on_more_numbers_than_rows_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x, positive = rng.normal(size=(20, 50)), rng.random(20) < 0.5
    ours, theirs = evals.logistic(x, positive), LogisticRegression(tol=1e-10, max_iter=5000).fit(x, positive)
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=1e-4)
    assert ours.bias == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_certain_rows_and_huge_numbers_have_a_finite_probe():
    x = np.array([[-1e6], [1e6], [2e6]])
    probe = evals.logistic(x, np.array([False, True, True]), C=1e6)
    assert np.isfinite(probe.weights).all() and (probe(x) > 0).tolist() == [False, True, True]


def test_rows_of_one_class_cannot_be_told_apart():
    with pytest.raises(UserError, match="3 rows of one class"):
        evals.logistic(np.ones((3, 2)), np.ones(3, bool))
    assert scores(np.zeros(2, bool), np.zeros(2, bool)) == (1.0, 0.0)


def test_pure_latents_probe_perfectly_and_permuted_labels_do_not():
    found = labels()
    own = probed(one_hot(found.classes), found)
    for name in ("activations", "latents, k=1", "latents, k=2"):
        assert own[name]["accuracy"]["values"] == own[name]["f1"]["values"] == [1.0] * CLASSES
        assert max(own[name]["accuracy"]["null"]) < 0.75
        assert len(own[name]["accuracy"]["seeds"]) == len(own[name]["f1"]["null_values"]) == 2


def test_a_class_in_two_latents_needs_two():
    found = labels()
    split = found.classes * 2 + np.arange(len(found.classes)) % 2
    own = probed(one_hot(split), found)
    assert own["latents, k=1"]["accuracy"]["mean"] == pytest.approx(0.75, abs=0.03)
    assert own["latents, k=2"]["accuracy"]["mean"] == 1


def test_noise_and_latents_of_single_words_are_at_chance():
    """Split by row instead, the latents of single words would tell every class perfectly."""
    found = labels(repeats=10)
    for dense in (topk_noise(len(found.classes), 60, 6), one_hot(found.words)):
        own = probed(dense, found, ks=(5,))
        for name in ("activations", "latents, k=5"):
            assert own[name]["accuracy"]["mean"] == pytest.approx(0.5, abs=0.08)
            assert own[name]["accuracy"]["mean"] == pytest.approx(np.mean(own[name]["accuracy"]["null"]), abs=0.1)
    t = class_tasks(found, 0)[0]
    x = one_hot(found.words)[np.concatenate([t.fit, t.test])]
    positive = np.concatenate([t.fit_positive, t.test_positive])
    probe = evals.logistic(x[::2], positive[::2])
    assert np.mean((probe(x[1::2]) > 0) == positive[1::2]) > 0.95


def test_the_others_are_as_many_and_spread_evenly():
    found = labels()
    for own in range(CLASSES):
        t = class_tasks(found, 0)[own]
        for rows, positive in ((t.fit, t.fit_positive), (t.test, t.test_positive)):
            counts = np.bincount(found.classes[rows], minlength=CLASSES)
            others = np.delete(counts, own)
            assert counts[own] == others.sum() == positive.sum() and np.ptp(others) <= 1
        assert not set(found.words[t.fit]) & set(found.words[t.test])
    assert len(class_tasks(found, 0, most_rows=7)[0].fit) == 14


def test_parents_atoms_and_all_apart():
    found = labels()
    dense = np.concatenate([np.ones((len(found.classes), CLASSES)), one_hot(found.classes)], axis=1)
    own = probed(dense, found, tree=Forest((CLASSES, 1)), ks=(1,))
    assert own["atoms, k=1"]["accuracy"]["mean"] == own["all, k=1"]["accuracy"]["mean"] == 1
    assert own["parents, k=1"]["accuracy"]["mean"] == 0.5


def test_dead_latents_an_absent_class_and_wrong_rows():
    found = labels()
    dead = probed(np.zeros((len(found.classes), 3)), found, ks=(1, 9))
    assert dead["latents, k=9"]["accuracy"]["mean"] == 0.5
    absent = RowLabels((*found.names, "absent"), found.classes, found.words)
    own = probed(one_hot(found.classes), absent)
    assert own["latents, k=1"]["accuracy"]["values"] == [1.0] * CLASSES + [None]
    with pytest.raises(UserError, match="but the activations of 239"):
        probed(one_hot(found.classes), found, x=np.zeros((239, 2), np.float32))
    with pytest.raises(UserError, match=r"ks\.0 is 0, expected at least 1"):
        probed(one_hot(found.classes), found, ks=(0,))
