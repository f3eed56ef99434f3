"""Transcoders, flat and hierarchical, of one layer and of several, against `reference.transcoders`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import transcoders as plain

from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.evals.fidelity import parameters
from jhsae.losses import Objective, ParentsOnly, SquaredError
from jhsae.sae import (
    Context,
    DecoderNormUnit,
    FeatureStats,
    FlatSAE,
    HierarchicalTranscoder,
    LinearSkip,
    SummedNormUnit,
    Transcoder,
)
from jhsae.sparsify import BatchTopK, JumpReLU, ReLU, TopK

BATCH, WIDTH, WRITTEN, K = 7, 6, 4, 2
KEY = jax.random.key(0)


def rows(size, seed=1):
    return jax.random.normal(jax.random.key(seed), (BATCH, size))


def moved(sae):
    """`sae` with every parameter away from its start, biases and thresholds too."""
    params, static = eqx.partition(sae, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    leaves = [a + 0.1 * jax.random.normal(key, a.shape) for a, key in zip(leaves, keys, strict=True)]
    return eqx.combine(jax.tree.unflatten(tree, leaves), static)


def flat(layers, **more):
    more = {"sparsifier": TopK(K), "features": 10 * layers} | more
    return moved(Transcoder(WIDTH * layers, output=WRITTEN * layers, layers=layers, key=KEY, **more))


def tree(layers, **more):
    sizes = {"experts": 5 * layers, "sub": 2, "atoms": 3, "route": TopK(K), "pick": TopK(1)} | more
    return moved(HierarchicalTranscoder(WIDTH * layers, output=WRITTEN * layers, layers=layers, key=KEY, **sizes))


def same(sae, of_token, x, y):
    """Outputs and gradients of the squared error are those of the plain form."""

    def ours(sae):
        forward = sae.forward(x, Context()).compared_to(y)
        return SquaredError()(sae, forward), forward.x_hat

    def theirs(sae):
        y_hat = jax.vmap(lambda token: of_token(token, sae)[0])(x)
        return jnp.mean(jnp.sum((y - y_hat) ** 2, axis=-1)), y_hat

    (loss, y_hat), gradient = eqx.filter_value_and_grad(ours, has_aux=True)(sae)
    (loss_2, expected), gradient_2 = eqx.filter_value_and_grad(theirs, has_aux=True)(sae)
    np.testing.assert_allclose(y_hat, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss, loss_2, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_2), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["dense", "gather", "tiles"])
def test_a_transcoder_is_the_plain_one_gradients_included(kernel):
    sae = flat(1, kernel=kernel)
    same(sae, lambda x, s: plain.transcoder(x, s, K), rows(WIDTH), rows(WRITTEN, 2))
    codes = sae.encode(rows(WIDTH))
    np.testing.assert_allclose(
        codes.dense(), jax.vmap(lambda x: plain.transcoder(x, sae, K)[1])(rows(WIDTH)), atol=1e-5
    )


def test_a_skip_connection_adds_a_matrix_times_the_input():
    sae = flat(1, skip=LinearSkip())
    same(sae, lambda x, s: plain.transcoder(x, s, K, s.skip.W_skip[0]), rows(WIDTH), rows(WRITTEN, 2))
    x = rows(WIDTH)
    np.testing.assert_allclose(sae(x) - sae.decode(sae.encode(x)), x @ sae.skip.W_skip[0].T, atol=1e-5)
    assert LinearSkip().sized(2, 3, 4).W_skip.shape == (2, 4, 3) and not LinearSkip().sized(2, 3, 4).W_skip.any()


@pytest.mark.parametrize("kernel", ["dense", "gather", "tiles"])
def test_a_cross_layer_transcoder_is_the_plain_one_gradients_included(kernel):
    sae = flat(3, kernel=kernel)
    masked = eqx.tree_at(lambda s: s.W_dec, sae, sae.sizes.masked(sae.W_dec))
    same(masked, lambda x, s: plain.cross_layer(x, s, K, 3), rows(3 * WIDTH), rows(3 * WRITTEN, 2))
    expected = jax.vmap(lambda x: plain.cross_layer(x, masked, K, 3)[1])(rows(3 * WIDTH))
    np.testing.assert_allclose(masked.encode(rows(3 * WIDTH)).dense(), expected, atol=1e-5)


def test_features_write_to_their_layer_and_later_ones_alone():
    for sae, roots in ((flat(3), 10), (tree(3), 5)):
        dictionary = np.asarray(sae.dictionary()).reshape(-1, 3, WRITTEN)
        layer = np.arange(3 * roots) // roots
        if sae.tree is not None:
            layer = np.concatenate([layer, np.repeat(layer, 3)])
        for feature, own in enumerate(layer):
            assert not dictionary[feature, :own].any() and dictionary[feature, own:].any(axis=1).all()
        x = rows(3 * WIDTH)
        late = x.at[:, 2 * WIDTH :].add(1.0)  # what a later layer reads changes nothing before it
        np.testing.assert_array_equal(sae(x)[:, : 2 * WRITTEN], sae(late)[:, : 2 * WRITTEN])
        assert not np.allclose(sae(x)[:, 2 * WRITTEN :], sae(late)[:, 2 * WRITTEN :])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kernel", ["dense", "gather", "tiles"])
def test_a_hierarchical_transcoder_is_the_plain_one_gradients_included(layers, kernel):
    sae = tree(layers, kernel=kernel)
    sae = eqx.tree_at(lambda s: (s.router_dec, s.up), sae, (sae.decoder().rows, sae.decoder().up))
    x, y = rows(layers * WIDTH), rows(layers * WRITTEN, 2)
    same(sae, lambda x, s: plain.hierarchical(x, s, K, layers), x, y)
    upper = jax.vmap(lambda x: plain.hierarchical(x, sae, K, layers)[1])(x)
    np.testing.assert_allclose(sae.forward(x, Context()).x_hat_parents, upper, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", [SummedNormUnit(3)])
def test_a_crosscoder_is_a_flat_sae_of_layers_side_by_side(unit):
    sae = moved(FlatSAE(3 * WIDTH, 12, TopK(K), code_unit=unit, key=KEY))
    x = rows(3 * WIDTH)
    same(sae, lambda x, s: plain.crosscoder(x, s, K, 3), x, x)
    penalty = jnp.sum(sae.encode(x).dense(), axis=-1)
    raw = sae.encode(x).dense() / sae.code_unit.norms(sae.W_dec)
    norms = jnp.linalg.norm(sae.W_dec.reshape(12, 3, WIDTH), axis=-1).sum(axis=1)
    np.testing.assert_allclose(penalty, raw @ norms, rtol=1e-5)
    with pytest.raises(UserError, match="3 layers cannot share rows of 16 numbers"):
        FlatSAE(16, 12, TopK(K), code_unit=unit, key=KEY).dictionary()


@pytest.mark.parametrize("make", [flat, tree])
@pytest.mark.parametrize("layers", [1, 3])
def test_decoding_is_linear_in_the_codes_over_the_dictionary(make, layers):
    sae, x = make(layers), rows(layers * WIDTH)
    codes = sae.encode(x)
    expected = codes.dense() @ sae.dictionary() + sae.b_dec
    np.testing.assert_allclose(sae.decode(codes), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae.decode(Codes(codes.dense(), None, sae.features)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae(x), expected, rtol=1e-5, atol=1e-5)
    assert (sae.embed, sae.output, sae.parts) == (layers * WIDTH, layers * WRITTEN, layers)
    assert codes.l0().max() <= layers * K * (1 if sae.tree is None else 2)


@pytest.mark.parametrize("rule", [ReLU(), JumpReLU(0.2), BatchTopK(2.0)])
@pytest.mark.parametrize("layers", [1, 3])
def test_rules_select_in_each_layer_by_itself_and_keep_their_own_thresholds(rule, layers):
    sae, x = flat(layers, sparsifier=rule), rows(layers * WIDTH)
    usage = FeatureStats.init(sae.features, len(sae.sparsifiers))
    forward = sae.forward(x, Context())
    np.testing.assert_allclose(forward.pre.shape, (BATCH, sae.features))
    alone = [Transcoder(WIDTH, 10, rule, output=WRITTEN, key=KEY) for _ in range(layers)]
    for layer, one in enumerate(alone):
        cut = slice(layer * 10, (layer + 1) * 10)
        parts = (sae.W_enc[cut], sae.b_enc[cut], (sae.rules[layer],))
        one = eqx.tree_at(lambda s: (s.W_enc, s.b_enc, s.rules), one, parts)
        own = one.encode(x[:, layer * WIDTH : (layer + 1) * WIDTH]).dense()
        np.testing.assert_allclose(forward.codes.dense()[:, cut], own, rtol=1e-5, atol=1e-6)
    for _ in range(3):
        usage = sae.observe(usage, forward.codes, 10)
    trained = sae.for_inference(sae.corrected(usage, 3))
    assert len(usage.thresholds) == layers and trained.encode(x).size == sae.features


def test_the_parts_of_a_layered_rule_are_those_of_all_features():
    sae = flat(3, sparsifier=JumpReLU(0.2))
    np.testing.assert_array_equal(sae.top_rule.threshold, jnp.concatenate([rule.threshold for rule in sae.rules]))


def test_an_objective_of_a_tree_compares_with_the_target():
    sae, x, y = tree(3), rows(3 * WIDTH), rows(3 * WRITTEN, 2)
    forward = sae.forward(x, Context()).compared_to(y)
    total, _ = Objective({"a": SquaredError(), "b": ParentsOnly()}, {"b": 0.5})(sae, forward, 0)
    error = jnp.mean(jnp.sum((y - forward.x_hat) ** 2, axis=1))
    upper = jnp.mean(jnp.sum((y - forward.x_hat_parents) ** 2, axis=1))
    np.testing.assert_allclose(total, error + 0.5 * upper, rtol=1e-6)


def test_parameters_and_multiplications_count_what_is_used():
    one, several = flat(1), flat(3)
    assert parameters(one) == 10 * WIDTH + 10 * WRITTEN + 10 + WRITTEN
    assert parameters(several) == 30 * WIDTH + 10 * WRITTEN * (3 + 2 + 1) + 30 + 3 * WRITTEN
    assert several.encoder_macs().plain == 30 * WIDTH
    experts = tree(3)
    wide = (3 + 2 + 1) * 5 * WRITTEN
    assert parameters(experts) == 15 * WIDTH * 3 + wide * 3 + 2 * 15 * 6 + 15 + 45 + 3 * WRITTEN
    assert experts.encoder_macs().plain == 15 * WIDTH + 3 * K * 2 * (WIDTH + 3)


def test_free_norms_are_taken_out_of_the_codes():
    sae = flat(3, code_unit=DecoderNormUnit())
    np.testing.assert_allclose(jnp.linalg.norm(sae.dictionary(), axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transcoder(7, 10, TopK(2), layers=2, key=KEY), "embed is 7, which 2 layers cannot share"),
        (lambda: Transcoder(8, 9, TopK(2), layers=2, key=KEY), "features is 9, which 2 layers"),
        (lambda: Transcoder(8, 10, TopK(6), layers=2, key=KEY), "k is 6 but there are 5 features in a layer"),
        (lambda: tree(2, sub=5), "sub is 5, but a layer has 4 dimensions"),
        (lambda: tree(2, experts=9), "experts is 9, which 2 layers"),
        (lambda: tree(2, route=TopK(6)), "k is 6 but there are 5 experts in a layer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
