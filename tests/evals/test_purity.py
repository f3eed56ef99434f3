"""Purity and leakage: known values on hand-made codes, chance on random ones, where the originals' pass anything."""

import numpy as np
import pytest
from labelled import CLASSES, firings, labels, topk_noise

from jhsae import evals
from jhsae.errors import UserError
from jhsae.evals import RowLabels
from jhsae.sae import Forest


def pure(found):
    """One latent per class that fires on its rows alone."""
    return (found.classes[:, None] == np.arange(CLASSES)) * 2.0


def measured(dense, found, tree=None, group="latents", **options):
    return evals.purity(firings(dense), found, tree, **{"permutations": 5, **options})["groups"][group]


def test_pure_constant_and_dead_latents():
    found = labels()
    rows = len(found.classes)
    own = measured(pure(found), found)
    assert own["purity"]["values"] == own["f1"]["values"] == own["auc"]["values"] == [1.0] * CLASSES
    assert own["leakage"]["values"] == [0.0] * CLASSES
    constant = measured(np.ones((rows, 1)), found)
    assert constant["purity"]["values"] == [pytest.approx(1 / CLASSES)]
    assert constant["auc"]["mean"] == 0.5
    assert constant["leakage"]["values"] == [pytest.approx(1 - 1 / CLASSES), None, None, None]
    dead = measured(np.zeros((rows, 3)), found)
    assert dead["purity"]["values"] == [None] * 3 and dead["purity"]["mean"] is None
    assert dead["f1"]["values"] == [0.0] * CLASSES and dead["leakage"]["mean"] is dead["auc"]["mean"] is None


def test_classes_weigh_alike():
    """A latent on every row of a class of 20 rows, and on 1 in 10 of one of 200, is purer than its count of rows."""
    words = np.arange(220)
    found = RowLabels(("few", "many"), (words >= 20).astype(np.int32), words.astype(np.int64))
    dense = np.where((words < 20) | (words % 10 == 0), 1.0, 0.0)[:, None]
    assert measured(dense, found)["purity"]["mean"] == pytest.approx(10 / 11, abs=0.03)


def test_the_class_is_chosen_on_other_words_than_it_is_scored_on():
    """Latents that each read one word look pure on the words themselves, and are at chance on others."""
    found = labels()
    words = len(np.unique(found.words))
    own = measured((found.words[:, None] == np.arange(words)) * 1.0, found)
    assert own["purity"]["mean"] is None and own["f1"]["mean"] == 0
    dense = topk_noise(len(found.classes), 40, 8)
    noise = measured(dense, found, permutations=20)
    for name, chance in (("purity", 1 / CLASSES), ("leakage", 1 - 1 / CLASSES), ("auc", 0.5)):
        assert noise[name]["mean"] == pytest.approx(chance, abs=0.06), name
        assert abs(noise[name]["mean"] - np.mean(noise[name]["null"])) < 0.06, name


def test_permuted_labels_are_the_null_of_pure_latents():
    own = measured(pure(labels()), labels(), permutations=20)
    for name in ("purity", "f1", "auc"):
        assert max(own[name]["null"]) < 0.7 < own[name]["mean"] == 1, name
    assert min(own["leakage"]["null"]) > 0.3
    assert len(own["f1"]["null_values"]) == 20 and len(own["f1"]["null_values"][0]) == CLASSES
    assert "null_values" not in own["purity"]


def test_the_original_metrics_pass_on_noise():
    """PolytopeSAE: leakage, the active parents, is k for any codes; purity, a ratio, has no bound."""
    found = labels()
    noise, planted = topk_noise(len(found.classes), 40, 1), pure(found)
    active = [np.mean(np.sum(dense != 0, axis=1)) for dense in (noise, planted)]
    assert active[0] == active[1] == 1
    own, other = found.classes == 0, found.classes != 0
    ratios = noise[own].mean(0) / (noise[other].mean(0) + 1e-9)
    assert ratios.max() > 2
    assert measured(noise, found)["leakage"]["mean"] > 0.6 and measured(planted, found)["leakage"]["mean"] == 0
    assert measured(noise, found)["purity"]["mean"] < 0.4


def test_parents_and_atoms_apart():
    """Pure parents with atoms that fire on anything where the parent does not tell."""
    found = labels()
    dense = np.concatenate([pure(found), np.ones((len(found.classes), 2 * CLASSES))], axis=1)
    both = evals.purity(firings(dense), found, Forest((CLASSES, 2)), permutations=2)["groups"]
    assert both["parents"]["purity"]["mean"] == 1 and both["parents"]["purity"]["units"] == [0, 1, 2, 3]
    assert both["atoms"]["purity"]["mean"] == pytest.approx(1 / CLASSES)
    assert both["atoms"]["purity"]["units"] == list(range(CLASSES, 3 * CLASSES))
    with pytest.raises(UserError, match="the tree has 12 latents, but the codes 4"):
        evals.purity(firings(pure(found)), found, Forest((CLASSES, 2)))


def test_counts_equal_a_plain_loop():
    found, dense = labels(), topk_noise(240, 12, 3, seed=2)
    own = measured(dense, found)
    half = found.half(0)
    for latent in range(12):
        rates = [
            [np.mean(dense[part & (found.classes == c), latent] > 0) for c in range(CLASSES)] for part in (half, ~half)
        ]
        best = int(np.argmax(rates[0]))
        assert own["purity"]["values"][latent] == pytest.approx(rates[1][best] / sum(rates[1]))
    for c in range(CLASSES):
        member = found.classes == c

        def f1(latent, part, member=member):
            fires = dense[part, latent] > 0
            return 2 * np.sum(fires & member[part]) / (fires.sum() + member[part].sum())

        best = int(np.argmax([f1(latent, half) for latent in range(12)]))
        assert own["f1"]["values"][c] == pytest.approx(f1(best, ~half))


def test_negative_codes_are_silent():
    found = labels()
    assert measured(-pure(found), found)["purity"]["mean"] is None


def test_one_class_and_other_rows_are_refused():
    found = labels()
    one = RowLabels(found.names, np.zeros_like(found.classes), found.words)
    with pytest.raises(UserError, match="fewer than two classes"):
        measured(pure(found), one)
    with pytest.raises(UserError, match="labels are of 240 rows, but the codes of 239"):
        measured(pure(found)[1:], found)
