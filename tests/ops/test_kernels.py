"""The kernels "tpu" and "gpu" of a training step's operations equal "tiles", gradients included, in an interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_interpreter import InterpretGPUParams
from jax.sharding import Mesh

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.ops.pallas import tile_pipeline, wide_gpu
from jhsae.ops.precision import compute_in
from jhsae.ops.sharding import sharded_over

BATCH, EMBED, EXPERTS, SUB, ATOMS, K = 53, 256, 16, 4, 6, 3
UNUSED = slice(3, 6)  # experts that no token selects
CLOSE = {"float32": 1e-6, "bfloat16": 2**-8}  # of the largest entry
GPU = InterpretGPUParams()
both = pytest.mark.parametrize("kernel", ["tpu", "gpu"])


@pytest.fixture(autouse=True)
def in_the_interpreter():
    tokens = tile_pipeline.INTERPRET.set(True), wide_gpu.INTERPRET.set(True)
    yield
    tile_pipeline.INTERPRET.reset(tokens[0])
    wide_gpu.INTERPRET.reset(tokens[1])


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape) / shape[-1] ** 0.5, jnp.float32)


def selected(batch=BATCH, uneven=False):
    """Distinct experts of each token; with `uneven`, nearly all tokens have the same."""
    rng = np.random.default_rng(2)
    allowed = np.delete(np.arange(EXPERTS), UNUSED)
    found = np.stack([rng.choice(allowed, K, replace=False) for _ in range(batch)])
    if uneven:
        found[rng.random(batch) < 0.9] = [15, 1, 8]
    return jnp.asarray(found, jnp.int32)


def matrices():
    return draw(EXPERTS, EMBED), draw(EXPERTS, SUB, EMBED), draw(EXPERTS, ATOMS, SUB)


def decode(kernel, indices, slots):
    """(Both parts of the reconstruction, all gradients) of children with `slots` slots, None for dense ones."""
    shape = (len(indices), K, ATOMS if slots is None else slots)
    atoms = None if slots is None else jnp.asarray(np.random.default_rng(3).integers(0, ATOMS, shape), jnp.int32)

    def run(parents, children, *matrices):
        codes = TreeCodes(Codes(parents, indices, EXPERTS), Codes(children, atoms, ATOMS))
        return ops.decode_tree(codes, ops.Decoder(*matrices), kernel)

    def gradients(*arguments):
        out, back = jax.vjp(run, *arguments)
        return out, back((draw(len(indices), EMBED, seed=4), draw(len(indices), EMBED, seed=5)))

    return jax.jit(gradients)(draw(len(indices), K), draw(*shape), *matrices())


def route(kernel, indices, width=EMBED):
    """(The selected pre-activations, all gradients, that of the centre and of x included)."""
    weight, down, atom_enc = matrices()

    def run(x, weight, bias, centre, down, atom_enc):
        encoder = ops.Encoder(x, weight, bias, centre)
        experts = ops.ExpertEncoders(down, atom_enc)
        select = lambda pre, tokens: indices[tokens]  # noqa: E731
        routed = ops.route(encoder, select, jax.nn.relu, None, experts, kernel)
        return routed.pre, routed.child_pre, routed.l1

    def gradients(*arguments):
        out, back = jax.vjp(run, *arguments)
        return out, back((draw(len(indices), K), draw(len(indices), K, ATOMS, seed=6), jnp.float32(0.01)))

    return jax.jit(gradients)(draw(len(indices), EMBED, seed=7), weight, draw(EXPERTS), draw(EMBED), down, atom_enc)


def same(got, want, close):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=close * max(np.abs(other).max(), 1e-9))


@pytest.mark.few(3)
@pytest.mark.parametrize("batch, uneven", [(BATCH, False), (301, True), (1, False)])
@pytest.mark.parametrize("precision", CLOSE)
@pytest.mark.parametrize("slots", [1, 2, None])
@both
def test_a_tree_is_decoded_alike(kernel, slots, precision, batch, uneven):
    indices = selected(batch, uneven)
    with compute_in(precision):
        same(decode(kernel, indices, slots), decode("tiles", indices, slots), CLOSE[precision])


@pytest.mark.parametrize("batch, uneven", [(BATCH, False), (301, True)])
@pytest.mark.parametrize("precision", CLOSE)
@both
def test_a_router_with_experts_has_the_same_gradients(kernel, precision, batch, uneven):
    indices = selected(batch, uneven)
    with compute_in(precision):
        same(route(kernel, indices), route("tiles", indices), CLOSE[precision])


@pytest.mark.parametrize("precision", CLOSE)
@both
def test_an_expert_without_a_token_has_a_gradient_of_exactly_zero(kernel, precision):
    with compute_in(precision):
        *_, d_up, d_dec = decode(kernel, selected(), 1)[1]
        *_, d_down, d_enc = route(kernel, selected())[1]
    used = np.unique(selected())
    for gradient in (d_up, d_dec, d_down, d_enc):
        assert not np.asarray(gradient)[UNUSED].any()
        assert np.asarray(gradient)[used].any(axis=(1, 2)).all()


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2, 2)])
@both
def test_devices_share_tokens_and_experts(kernel, shape):
    mesh = Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(1, *shape), ("host", "data", "expert"))
    indices = selected(52)
    alone = decode(kernel, indices, 1), route(kernel, indices)
    with sharded_over(mesh):
        same((decode(kernel, indices, 1), route(kernel, indices)), alone, 1e-5)


@pytest.mark.parametrize("shape", [(5, 300), (2, 3, 257)])
@both
def test_topk_by_the_kernel_selects_the_same_entries(kernel, shape):
    token = wide_gpu.INTERPRET.set(GPU)
    x = jnp.where((x := draw(*shape)) > 0.02, x, 0.0)  # ties at 0
    for got, want in zip(ops.topk(x, 7, kernel), ops.topk(x, 7, "lax"), strict=True):
        np.testing.assert_array_equal(got, want)
    wide_gpu.INTERPRET.reset(token)


@both
def test_the_kernel_for_top_k_needs_its_platform(kernel):
    tokens = tile_pipeline.INTERPRET.set(False), wide_gpu.INTERPRET.set(None)
    with pytest.raises(UserError, match=f'topk is "{kernel}", but the platform is cpu; write topk: auto'):
        ops.topk(draw(2, 300), 7, kernel)
    tile_pipeline.INTERPRET.reset(tokens[0])
    wide_gpu.INTERPRET.reset(tokens[1])
