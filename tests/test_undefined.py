"""Where something is divided by what may be 0: a number that is not defined is None, and nothing becomes NaN."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jhsae import data, evals, losses, sparsify
from jhsae.data.statistics import Running
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.metric import Euclidean, causal
from jhsae.sae import FlatSAE, mixture_of_experts_v2
from jhsae.schedule import Constant, Linear
from jhsae.teacher.estimate import LDAEstimator, MeanEstimator, ParkEstimator
from jhsae.teacher.subspace import delta_span
from jhsae.teacher.validate import auc, off_right_angle, quartiles
from jhsae.training.step import _fidelity
from jhsae.usage import Context, FeatureStats

EMBED = runs.EMBED
GUMBEL = [sparsify.GumbelTopK, sparsify.BinaryGumbelTopK]


@pytest.fixture(scope="module")
def pre():
    return jax.random.normal(jax.random.key(3), (4, 32))


@pytest.mark.parametrize("kind", GUMBEL)
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-40, Linear(1.0, 0.0, 10)])
def test_a_temperature_of_0_is_top_k(pre, kind, k, temperature):
    schedule = temperature if isinstance(temperature, Linear) else Linear(1.0, temperature, 10)
    rule, context = kind(k, schedule), Context(jax.random.key(0), jnp.asarray(10))
    codes = rule(pre, context)
    if not (kind is sparsify.BinaryGumbelTopK and k == 1):  # whose noise does not depend on the temperature
        expected = rule(pre, Context())
        np.testing.assert_array_equal(codes.dense(), expected.dense())
    assert np.all(np.sum(np.asarray(codes.dense()) != 0, axis=1) == k)
    slope = jax.grad(lambda p: jnp.sum(rule(p, context).values ** 2))(pre)
    assert np.isfinite(slope).all()


def test_a_constant_temperature_of_0_is_top_k(pre):
    codes = sparsify.GumbelTopK(4, Constant(0.0))(pre, Context(jax.random.key(0), jnp.asarray(3)))
    np.testing.assert_array_equal(codes.dense(), sparsify.TopK(4)(pre, Context()).dense())


@pytest.fixture(scope="module")
def flat():
    return FlatSAE(EMBED, 40, sparsify.TopK(4), key=jax.random.key(0))


def fidelity(sae, x, mean=None):
    mean = np.zeros(EMBED, np.float32) if mean is None else mean
    metrics, _ = evals.fidelity(sae, data.Identity(), [x], mean)
    json.loads(json.dumps(metrics, allow_nan=False))
    return metrics


def test_rows_without_a_ratio_are_left_out_of_its_mean(flat):
    x = runs.activations(64)
    x[[3, 9]] = 0
    found, kept = fidelity(flat, x), fidelity(flat, np.delete(x, [3, 9], axis=0))
    same = ("ev_legacy", "cosine", "shrinkage")
    assert [found[k] for k in same] == pytest.approx([kept[k] for k in same], rel=1e-5)
    assert found["rows"] == 64 and found["mse"] == pytest.approx(kept["mse"] * 62 / 64)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_nothing_but_zeros_has_no_ratios(flat, bias):
    sae = eqx.tree_at(lambda s: s.b_dec, flat, jnp.full(EMBED, bias))
    found = fidelity(sae, np.zeros((8, EMBED), np.float32))
    undefined = {"ev_r2", "ev_saebench", "ev_legacy", "cosine", "shrinkage", "relative_reconstruction_bias"}
    assert {k for k, v in found.items() if v is None} == undefined


def test_equal_rows_explain_nothing(flat):
    row = np.full(EMBED, 0.1, np.float32)
    found = fidelity(flat, np.tile(row, (16, 1)), np.float32(np.float64(row) * (1 + 1e-7)))
    assert found["ev_r2"] is None and found["ev_legacy"] is None and found["cosine"] is not None


def test_no_rows_are_a_sentence(flat):
    for batches in ([], [np.zeros((0, EMBED), np.float32)]):
        with pytest.raises(UserError, match="an evaluation of 0 activations"):
            evals.fidelity(flat, data.Identity(), batches, np.zeros(EMBED, np.float32))


def test_recovered_is_undefined_where_zeros_are_as_good_as_the_model():
    same = {"ce": 2.0, "kl": 0.0}
    found = evals.recovered({"model": same, "zero": same, "sae": {"ce": 2.5, "kl": 0.1}}, "sae")
    assert found["ce_recovered"] is None and found["kl_recovered"] is None and found["ce"] == 2.5


def test_angles_of_nothing_are_undefined():
    for experts in (1, 6):
        sae = mixture_of_experts_v2(EMBED, experts, 2, 3, 1, key=jax.random.key(0))
        alive = np.ones(sae.features)
        found = evals.orthogonality(sae, Euclidean(), np.zeros(sae.features))
        assert found == dict.fromkeys(found, None) | {"live_atoms": 0}
        found = evals.orthogonality(sae, Euclidean(), alive)
        assert (found["parent_child_off_90_null"] is None) == (experts == 1) and found["parent_child_off_90"] > 0
        nothing = eqx.tree_at(lambda s: s.up, sae, jnp.zeros_like(sae.up))  # rows of 0 are not orthogonal to anything
        assert evals.orthogonality(nothing, Euclidean(), alive)["parent_child_off_90"] is None


def test_a_batch_of_equal_rows_has_no_explained_variance(flat):
    for x in (jnp.ones((4, EMBED)), jnp.ones((1, EMBED)), jnp.zeros((4, EMBED))):
        assert jnp.isnan(_fidelity(flat.forward(x, Context()))["explained_variance"])
    assert "explained_variance" in losses.base.UNDEFINED


@pytest.mark.parametrize("term", [losses.AuxK(), losses.AuxKNormalized(), losses.GhostGradients()], ids=repr)
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_terms_are_finite_where_nothing_varies(flat, term, rows):
    x = jnp.ones((max(rows, 1), EMBED)) * (rows > 0)
    dead = jnp.arange(flat.features) % 2 == 0
    context = Context(jax.random.key(0), jnp.asarray(0), FeatureStats.init(flat.features, 1), dead.astype(jnp.float32))

    def loss(sae):
        return term(sae, sae.forward(x, context))

    value, slope = eqx.filter_value_and_grad(loss)(flat)
    assert np.isfinite(value) and value < 1e4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.few(1)
@pytest.mark.parametrize("experts", [1, 3])
def test_orthogonality_terms_are_finite_for_one_expert_and_for_rows_of_0(experts):
    sae = mixture_of_experts_v2(EMBED, experts, 2, 3, 1, key=jax.random.key(0))
    empty = eqx.tree_at(lambda s: s.router_dec, sae, jnp.zeros_like(sae.router_dec))
    forward = sae.forward(jnp.ones((2, EMBED)), Context())
    terms = [losses.CrossOrthogonality(), losses.CrossOrthogonalityRowDiagonal(), losses.BiOrthogonality()]
    for term in terms:
        for one in (sae, empty):
            value, slope = eqx.filter_value_and_grad(lambda s, term=term: term(s, forward))(one)
            assert np.isfinite(value)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


FITTED = [data.Scale(), data.CenterScale(), data.Standardize(), data.Standardize(eps=0.0), data.Whiten()]
FITTED += [data.Whiten(eps=0.0), data.CenteredUnitNorm(), data.UnitNorm(), data.UnitNorm(eps=0.0)]
FITTED += [data.ConstantNorm(), data.LayerNorm(), data.LayerNorm(eps=0.0), data.CenteredUnitNorm(eps=0.0)]
STORES = {
    "zeros": np.zeros((6, EMBED)),
    "equal rows": np.tile(np.linspace(-3, 0.1, EMBED), (7, 1)),
    "a constant channel": np.concatenate([runs.activations(50)[:, 1:], np.full((50, 1), 1 / 3)], axis=1),
    "two rows": runs.activations(2),
    "a constant row": np.full((6, EMBED), 2.5),
}


@pytest.mark.parametrize("normalizer", FITTED, ids=repr)
@pytest.mark.parametrize("name", STORES)
def test_normalisers_are_finite_and_undone_on_any_store(normalizer, name):
    x = STORES[name].astype(np.float32)
    inside, token = normalizer.fit(data.ArrayRows(x))(jnp.asarray(x))
    back = normalizer.fit(data.ArrayRows(x)).undo(inside, token)
    assert np.isfinite(inside).all() and np.abs(inside).max() < 1e4
    np.testing.assert_allclose(back, x, atol=1e-3)


def test_normalisers_of_one_row_or_one_dimension_and_of_nothing():
    one = np.ones((1, EMBED), np.float32)
    for normalizer in FITTED:
        if isinstance(normalizer, data.Whiten):
            with pytest.raises(UserError, match="a covariance was asked of 1 row"):
                normalizer.fit(data.ArrayRows(one))
        else:
            assert np.isfinite(normalizer.fit(data.ArrayRows(one))(jnp.asarray(one))[0]).all()
    with pytest.raises(UserError, match="0 rows"):
        data.ArrayRows(one[:0])
    x = jnp.asarray([[0.0], [3.0]])
    assert np.isfinite(data.LayerNorm()(x)[0]).all() and np.isfinite(data.LayerNorm(eps=0.0)(x)[0]).all()


def test_a_saved_statistic_of_0_divides_nothing():
    x = jnp.zeros((2, EMBED))
    for normalizer in (data.Scale(jnp.float32(0)), data.CenterScale(jnp.zeros(EMBED), jnp.float32(0))):
        assert np.isfinite(normalizer(x)[0]).all()


def test_constant_channels_are_not_scaled_up_by_rounding():
    x = np.tile(np.float32(1 / 3), (5000, EMBED)) + 0
    fitted = data.Standardize().fit(data.ArrayRows(x))
    assert np.abs(fitted(jnp.asarray(x + 0.5))[0]).max() < 1
    assert Running.of(x).summary().total_variance >= 0


def test_an_unembedding_without_variance_is_a_sentence():
    with pytest.raises(UserError, match="all rows of the unembedding are equal"):
        causal(np.ones((5, 3), np.float32))


def test_json_has_null_for_what_is_undefined():
    assert to_json({"a": float("nan"), "b": [np.float32("inf"), 1.0]}) == '{"a": null, "b": [null, 1.0]}'


def test_a_teacher_leaves_out_what_has_no_angle_and_no_spread():
    nothing, parent = np.zeros((1, 4)), np.eye(4)[0]
    deltas = np.concatenate([nothing, np.eye(4)[1:3]])
    np.testing.assert_array_equal(np.isnan(off_right_angle(deltas, parent)), [True, False, False])
    assert np.isnan(off_right_angle(deltas, nothing[0])).all()
    assert quartiles(np.array([np.nan, 1.0, 3.0])) | {"quartile_1": 0, "quartile_3": 0} == {
        "median": 2.0, "quartile_1": 0, "quartile_3": 0, "n": 2
    }  # fmt: skip
    assert quartiles(np.zeros(0)) == {"median": None, "quartile_1": None, "quartile_3": None, "n": 0}
    assert np.isnan([auc(np.zeros(0), np.ones(2)), auc(np.ones(2), np.zeros(0))]).all()
    for deltas in (nothing, nothing[:0]):
        assert delta_span(deltas, 2, 0.9).shape == (0, 4)


@pytest.mark.parametrize("kind", [ParkEstimator, LDAEstimator])
def test_one_sample_of_a_concept_has_no_spread(kind):
    one = np.ones((1, 4))
    with pytest.raises(UserError, match="no spread or no mean"):
        kind().direction(one, 2 * one)
    assert np.array_equal(MeanEstimator().direction(one, one), np.ones(4))
