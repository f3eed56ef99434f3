"""Metrics against a known world: SAELens's own numbers, known answers, plain loops, and what has no answer."""

import json
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from trees import DEPTH3, EMBED, by_hand, cut, magnitudes, orthonormal

from jhsae import evals
from jhsae.data import ArrayRows, CenterScale, Identity, LayerNorm, UnitNorm
from jhsae.errors import UserError
from jhsae.evals.truth import counts, latent_parents
from jhsae.evals.truth.counts import is_on, sparse_codes
from jhsae.sae import FlatSAE, mixture_of_experts_v2
from jhsae.sparsify import JumpReLU, TopK
from jhsae.usage import Context
from jhsae.worlds import Hierarchy

TREE = Hierarchy.of_parents(DEPTH3)
FEATURES = orthonormal(len(DEPTH3))
CODES = magnitudes(TREE, 600)
X = CODES @ FEATURES
BATCHES = cut(X, CODES)
ABOUT = {"reads": {"model": "world", "layer": None}, "config_hash": "0", "commit": "0", "versions": {"jhsae": "0"}}


def measured(sae, normalizer=None, features=FEATURES, hierarchy=TREE, batches=BATCHES, **options):
    options = {"permutations": 40} | options
    return evals.truth(sae, normalizer or Identity(), features, hierarchy, batches, **options)


@pytest.fixture(scope="module")
def oracle():
    return measured(by_hand(FEATURES, DEPTH3))


def test_the_oracle_dictionary_scores_one_and_disturbs_nothing(oracle):
    for name in ("mcc", "uniqueness", "precision", "recall", "f1", "accuracy", "ev_r2", "shrinkage", "feature_f1"):
        assert oracle[name] == pytest.approx(1, abs=1e-5), name
    assert oracle["dead_latents"] == 0 and oracle["rows"] == 600 and oracle["all_pairs"]
    assert oracle["l0"] == oracle["true_l0"] == np.mean(np.sum(CODES > 0, axis=1))
    for row in oracle["levels"]:
        assert row["mcc"] == pytest.approx(1, abs=1e-5) and row["f1"] == row["feature_f1"] == 1
        assert row["any_mcc"] == pytest.approx(1, abs=1e-5) and 0 < row["any_f1"] < 1
    assert [(row["features"], row["latents"]) for row in oracle["levels"]] == [(2, 2), (4, 4), (6, 6)]
    assert oracle["roots"]["any"] == oracle["roots"]["parents"] == {"roots": 2, "found": 1.0, "best_f1": 1.0}
    assert oracle["roots"]["prefix"] is None
    for kind in ("tree", "edges"):
        assert oracle[kind]["share"] == 1 and oracle[kind]["features"] == 10 and oracle[kind]["p"] < 0.05
        assert oracle[kind]["chance"] < oracle[kind]["chance_p95"] <= oracle[kind]["chance_p99"]
        assert {k: v["features"] for k, v in oracle[kind]["by_level"].items()} == {"1": 4, "2": 6}
    absorbed, hedged = oracle["absorption"], oracle["hedging"]
    assert absorbed["hard"] == absorbed["hard_excess"] == 0 and absorbed["hard_pairs"] == 10
    assert absorbed["soft"] == pytest.approx(0, abs=1e-5)
    assert hedged["hedging"] == pytest.approx(0, abs=1e-6) and hedged["latents"] == 6
    assert oracle["violations"] == 0 and oracle["siblings"]["largest"] == pytest.approx(0, abs=1e-6)
    assert json.loads(json.dumps(oracle)) == oracle


def test_the_same_dictionary_with_other_parents_is_at_chance():
    """Levels, and so everything but the tree, stay the same."""
    dealt = (-1, -1, 1, 1, 0, 0, 3, 3, 2, 5, 4, 4)
    found = measured(by_hand(FEATURES, dealt), permutations=200)
    assert found["tree"]["share"] == found["edges"]["share"] == 0
    assert found["tree"]["p"] > 0.5 and found["edges"]["p"] > 0.5
    assert found["levels"][1]["f1"] == 1 and found["violations"] > 0.3


def test_a_random_dictionary_finds_no_tree():
    rows = np.random.default_rng(1).normal(size=FEATURES.shape)
    found = measured(by_hand(rows, DEPTH3), permutations=200)
    for kind in ("tree", "edges"):
        assert found[kind]["p"] > 0.05 and found[kind]["share"] <= found[kind]["chance_p99"]
    assert found["mcc"] < 0.8 and found["roots"]["parents"]["best_f1"] < 0.9


def test_any_batching_gives_the_same(oracle):
    again = measured(by_hand(FEATURES, DEPTH3), batches=iter([(X[:1], CODES[:1]), (X[:0], CODES[:0]), *cut(X, CODES)]))
    once = measured(by_hand(FEATURES, DEPTH3), batches=[(jnp.asarray(X), jnp.asarray(CODES))])
    assert once["ev_r2"] == pytest.approx(oracle["ev_r2"], abs=1e-6) and again["rows"] == 601
    assert {k: v for k, v in once.items() if k not in ("ev_r2", "absorption", "shrinkage")} == {
        k: v for k, v in oracle.items() if k not in ("ev_r2", "absorption", "shrinkage")
    }


def test_explained_variance_and_shrinkage_are_those_of_fidelity_with_a_mean_far_from_0():
    sae = by_hand(FEATURES * 0.8, DEPTH3)
    x = X + 20.0
    found = measured(sae, batches=cut(x, CODES))
    metrics, _ = evals.fidelity(sae, Identity(), [x], x.mean(axis=0, dtype=np.float64))
    for name in ("ev_r2", "shrinkage", "l0"):
        assert found[name] == pytest.approx(metrics[name], rel=1e-5)


@pytest.fixture(scope="module")
def lens() -> ModuleType:
    pytest.importorskip("sae_lens")
    return pytest.importorskip("sae_lens.synthetic")


@pytest.mark.filterwarnings("default")  # sae_lens and what it imports warn about themselves
@pytest.mark.parametrize("normalizer", [Identity(), CenterScale()], ids=["identity", "centre"])
@pytest.mark.parametrize("sparsifier", [TopK(3), JumpReLU()], ids=["topk", "jump"])
def test_numbers_are_those_of_saelens_on_its_own_world(lens, tmp_path, sparsifier, normalizer):
    import torch
    from sae_lens import SAE

    from jhsae.interop import saelens

    torch.manual_seed(0)
    nodes = [lens.HierarchyNode(feature_index=i) for i in range(len(DEPTH3))]
    nodes = [
        lens.HierarchyNode(
            feature_index=r,
            children=[
                lens.HierarchyNode(feature_index=c, children=[nodes[g] for g in TREE.below[c]]) for c in TREE.below[r]
            ],
        )
        for r in TREE.roots
    ]
    generator = lens.ActivationGenerator(len(DEPTH3), 0.5, 0.2, 1.0, modify_activations=lens.hierarchy_modifier(nodes))
    dictionary = lens.FeatureDictionary(len(DEPTH3), EMBED, bias=0.5, seed=0)
    with torch.no_grad():
        codes = generator.sample(500)
        x = dictionary(codes)
    sampled = iter(torch.split(codes, 100))
    generator.sample = lambda n: next(sampled)
    features = dictionary.feature_vectors.detach().numpy()
    sae = FlatSAE(EMBED, 20, sparsifier, key=jax.random.key(0))
    x, codes = x.numpy(), codes.numpy()
    normalizer = normalizer.fit(ArrayRows(x))
    saelens.write(tmp_path / "out", sae, normalizer, ABOUT)
    loaded = SAE.load_from_disk(tmp_path / "out")
    theirs = lens.eval_sae_on_synthetic_data(loaded, dictionary, generator, 500, 100).to_log_dict()
    ours = measured(sae, normalizer, features, batches=cut(x, codes, 130))
    names = {"explained_variance": "ev_r2", "sae_l0": "l0", "classification/f1_score": "f1"}
    ours = {name: ours[names.get(name, name.removeprefix("classification/"))] for name in theirs}
    assert theirs["classification/f1_score"] > 0.05 and theirs["true_l0"] > 1
    assert ours == pytest.approx(theirs, abs=1e-3)


def loops(codes, latents, best):
    """Precision, recall, F1 and accuracy of the latents, token by token."""
    rows = []
    for latent, feature in enumerate(best):
        pairs = [(a != 0, t > 0) for a, t in zip(latents[:, latent], codes[:, feature], strict=True)]
        tp, fp, fn = pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
        p, r = tp / (tp + fp) if tp + fp else 0, tp / (tp + fn) if tp + fn else 0
        rows.append((p, r, 2 * p * r / (p + r) if p + r else 0, (len(pairs) - fp - fn) / len(pairs)))
    return dict(zip(("precision", "recall", "f1", "accuracy"), np.mean(rows, axis=0), strict=True))


def test_classification_equals_loops_with_dead_latents_and_rows_of_zeros():
    rows = np.random.default_rng(3).normal(size=(9, EMBED)).astype(np.float32)
    rows[4], rows[7] = 0, -rows[6]
    sae = by_hand(rows, [-1] * 9)
    latents = np.asarray(sae.forward(jnp.asarray(X), Context()).codes.dense())
    best = np.abs(FEATURES @ rows.T / np.maximum(np.linalg.norm(rows, axis=1), 1e-9)).argmax(axis=0)
    found = measured(sae)
    assert {k: found[k] for k in ("precision", "recall", "f1", "accuracy")} == pytest.approx(
        loops(CODES, latents, best)
    )
    assert found["dead_latents"] == np.sum(~latents.any(axis=0)) >= 1
    every = [max(loops(CODES, latents[:, [i]], [f])["f1"] for i in range(9)) for f in range(len(FEATURES))]
    assert found["feature_f1"] == pytest.approx(np.mean(every))
    matched = linear_sum_assignment(np.abs(FEATURES @ rows.T / np.maximum(np.linalg.norm(rows, axis=1), 1e-9)), True)
    own = [loops(CODES, latents[:, [i]], [f])["f1"] for f, i in zip(*matched, strict=True)]
    (flat,) = [level for level in measured(sae, hierarchy=Hierarchy(len(FEATURES)))["levels"] if level["features"]]
    assert flat["matched_f1"] == pytest.approx(sum(own) / len(FEATURES)) and len(own) < len(FEATURES)
    assert found["roots"]["any"]["best_f1"] == pytest.approx(np.mean(every[:2]))
    prefix = [max(loops(CODES, latents[:, [i]], [f])["f1"] for i in range(2)) for f in range(2)]
    assert found["roots"]["prefix"]["best_f1"] == pytest.approx(np.mean(prefix))
    assert found["tree"] is found["edges"] is found["violations"] is found["roots"]["parents"] is None


def test_above_the_limit_only_candidates_are_counted(monkeypatch, oracle):
    """All that needs the best match stays; every best pair by F1 happens to be one by cosine here."""
    monkeypatch.setattr(counts, "MOST_PAIRS", 10)
    monkeypatch.setattr(counts, "CANDIDATES", 1)
    found = measured(by_hand(FEATURES, DEPTH3))
    assert not found["all_pairs"]
    assert found | {"all_pairs": True} == oracle


def test_sparse_codes_are_the_dense_ones():
    codes = mixture_of_experts_v2(EMBED, experts=6, sub=2, atoms=3, k=2, key=jax.random.key(0)).encode(X[:50])
    np.testing.assert_allclose(sparse_codes(codes.flat()).toarray(), codes.dense())
    assert is_on(sparse_codes(codes.flat())).sum() == codes.l0().sum()


def test_parents_of_a_hierarchical_and_of_a_flat_sae():
    sae = mixture_of_experts_v2(EMBED, experts=3, sub=2, atoms=2, k=1, key=jax.random.key(0))
    assert latent_parents(sae).tolist() == [-1, -1, -1, 0, 0, 1, 1, 2, 2]
    assert latent_parents(FlatSAE(EMBED, 3, TopK(1), key=jax.random.key(0))).tolist() == [-1] * 3
    with pytest.raises(UserError, match=r"gave 2 parents of 12 latents"):
        latent_parents(by_hand(FEATURES, (-1, 0)))
    with pytest.raises(UserError, match="cycle"):
        latent_parents(by_hand(FEATURES[:2], (1, 0)))


@pytest.mark.parametrize("normalizer", [UnitNorm(), LayerNorm(), CenterScale().fit(ArrayRows(X))])
def test_a_routed_sae_has_no_violations_under_any_normalizer(normalizer):
    sae = mixture_of_experts_v2(EMBED, experts=5, sub=3, atoms=3, k=2, key=jax.random.key(2))
    found = measured(sae, normalizer)
    assert found["violations"] == 0 and found["siblings"]["parents"] == 5
    assert found["latents"] == 20 and len(found["levels"]) == 3 and found["levels"][2]["mcc"] is None


def test_one_root_without_children_and_a_constant_world():
    one, codes = Hierarchy(1), np.ones((5, 1), np.float32)
    for rows, parents in [(FEATURES[:1], (-1,)), (FEATURES[:3], (-1, 0, 0))]:
        found = measured(
            by_hand(rows, parents), features=FEATURES[:1], hierarchy=one, batches=[(codes @ FEATURES[:1], codes)]
        )
        assert found["ev_r2"] is found["tree"] is found["edges"] is found["hedging"]["hedging"] is None
        assert found["absorption"]["hard"] is found["absorption"]["soft"] is None
        assert found["roots"]["any"]["found"] == 1 and found["mcc"] == pytest.approx(1)


def test_a_dead_sae_has_numbers():
    found = measured(by_hand(np.zeros_like(FEATURES), DEPTH3))
    assert found["dead_latents"] == 12 and found["f1"] == found["mcc"] == found["l0"] == found["feature_f1"] == 0
    assert found["violations"] is found["absorption"]["soft"] is None and found["siblings"]["largest"] is None
    assert found["hedging"]["hedging"] is None and found["shrinkage"] == 0


BAD = {
    "width": ({"features": FEATURES[:, :8]}, "rows of 16 numbers, but the world's features have 8"),
    "hierarchy": ({"hierarchy": Hierarchy(3)}, "over 3 features, but the world has 12"),
    "codes": ({"batches": [(X, CODES[:, :3])]}, r"codes \(600, 3\), but this SAE reads 16 numbers .* 12 features"),
    "rows": ({"batches": [(X[:3], CODES)]}, "write .tokens, 16. and .tokens, 12."),
    "other": ({"batches": [(X[:, :5], CODES)]}, r"activations \(600, 5\)"),
    "nothing": ({"batches": [(X[:0], CODES[:0])]}, "0 activations"),
    "nan": ({"batches": [(X * np.nan, CODES)]}, "not finite"),
    "empty": ({"features": FEATURES[:0], "hierarchy": Hierarchy(0)}, "0 features, expected at least 1"),
    "tau": ({"tau": 2.0}, "tau is 2.0, expected at least 0 and at most 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_sentence(case):
    change, words = BAD[case]
    with pytest.raises(UserError, match=words) as raised:
        measured(by_hand(FEATURES, DEPTH3), **change)
    assert "\n" not in str(raised.value)
