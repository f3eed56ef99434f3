"""Every operation on eight devices is what it is on one, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.ops import select, sharding, tiles
from jhsae.ops.chunks import sized_for

BATCH, EMBED, EXPERTS, K, SUB, ATOMS = 24, 6, 32, 3, 2, 4
MESH = jax.make_mesh((1, 2, 4), ops.SHARDS, axis_types=(AxisType.Auto,) * 3)
HOSTS = jax.make_mesh((2, 2, 2), ops.SHARDS, axis_types=(AxisType.Auto,) * 3)


@pytest.fixture(autouse=True)
def groups_of_two_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "CPU_BYTES", 2 * 4 * tiles.ROWS * EMBED)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32))


def indices(experts=EXPERTS, one=False):
    if one:  # every token asks the experts of one device
        return jnp.tile(jnp.arange(K, dtype=jnp.int32), (BATCH, 1))
    rng = np.random.default_rng(1)
    return jnp.asarray(np.stack([rng.choice(experts, K, replace=False) for _ in range(BATCH)]).astype(np.int32))


def alike(function, *arguments):
    """Value and gradients of the sum of squares of what a function gives, on a mesh and without."""

    def run(mesh):
        def loss(*arguments):
            with ops.sharded_over(mesh):
                out = function(*arguments)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(out)), out

        def both(*arguments):
            with ops.sharded_over(mesh):
                return jax.value_and_grad(loss, tuple(range(len(arguments))), has_aux=True)(*arguments)

        return jax.jit(both)(*arguments)

    for a, b in zip(jax.tree.leaves(run(HOSTS)), jax.tree.leaves(run(None)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("one", [False, True], ids=["spread", "one device's experts"])
def test_encode_and_decode_atoms(one):
    at = indices(one=one)
    down, up, enc, dec = draw(EXPERTS, SUB, EMBED), draw(EXPERTS, SUB, EMBED, seed=1), *2 * [draw(EXPERTS, ATOMS, SUB)]

    def encode(x, down, enc):
        return ops.encode_atoms(x, at, ops.ExpertEncoders(down, enc), "tiles")

    alike(encode, draw(BATCH, EMBED), down, enc)

    def decode(values, up, dec):
        codes = TreeCodes(Codes(draw(BATCH, K), at, EXPERTS), Codes(values, None, ATOMS))
        return ops.decode_atoms(codes, ops.Decoder(draw(EXPERTS, EMBED), up, dec), "tiles")

    alike(decode, draw(BATCH, K, ATOMS), up, dec)


@pytest.mark.parametrize("experts", [EXPERTS, 30], ids=["shared out", "not shared out"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # selected rows, and all of them
def test_decode_tree_and_rows(experts, platform):
    at = indices(experts)
    atoms = jnp.asarray(np.random.default_rng(2).integers(0, ATOMS, (BATCH, K, 1)), jnp.int32)
    rows, up, dec = draw(experts, EMBED), draw(experts, SUB, EMBED), draw(experts, ATOMS, SUB)

    def tree(parents, children, rows, up, dec):
        codes = TreeCodes(Codes(parents, at, experts), Codes(children, atoms, ATOMS))
        return ops.decode_tree(codes, ops.Decoder(rows, up, dec), "tiles")

    with sized_for(platform):
        alike(tree, draw(BATCH, K), draw(BATCH, K, 1), rows, up, dec)
        alike(lambda v, rows: ops.decode_rows(Codes(v, at, experts), rows, "tiles"), draw(BATCH, K), rows)


@pytest.mark.parametrize("inside", [False, True])
def test_route_with_every_part_of_an_encoder(inside):
    down, enc = draw(EXPERTS, SUB, EMBED), draw(EXPERTS, ATOMS, SUB)

    def routed(x, weight, bias, centre, scale, down, enc):
        encoder = ops.Encoder(x, weight, bias, centre, scale)
        select = lambda pre, _: ops.topk(jax.nn.relu(pre), K)[1]  # noqa: E731
        found = ops.route(encoder, select, jax.nn.relu, 5, ops.ExpertEncoders(down, enc) if inside else None)
        return found.pre, found.l1 / 1000, found.child_pre

    parts = draw(EXPERTS, EMBED), draw(EXPERTS), draw(EMBED), 1.5 + jnp.abs(draw(EXPERTS, seed=3))
    alike(routed, draw(BATCH, EMBED), *parts, down, enc)


def split(function, experts):
    """A function of one device's features, on the mesh."""
    layouts = (ops.ShardingKind.BOTH,), ops.ShardingKind.TOKENS

    def run(x):
        with ops.sharded_over(MESH):
            return sharding.shard_mapped(function, *layouts, experts)(x)

    return jax.jit(run)


@pytest.mark.parametrize("method", ["auto", "lax", "scan", "blocked", "bits", "blocked_bits"])
@pytest.mark.parametrize("kind", ["numbers", "ties", "equal"])
def test_topk_of_split_rows_gives_the_indices_of_one_device(kind, method):
    x = {"numbers": draw(BATCH, EXPERTS), "ties": jnp.round(draw(BATCH, EXPERTS)), "equal": jnp.ones((BATCH, EXPERTS))}
    for k in (1, 5, 12):  # 12 is more than a device has
        np.testing.assert_array_equal(
            split(lambda x, k=k: ops.topk(x, k, method)[1], EXPERTS)(x[kind]), ops.topk(x[kind], k)[1]
        )


def test_per_shard_takes_the_same_number_of_each_device():
    x = draw(BATCH, EXPERTS)
    got = np.asarray(split(lambda x: ops.topk(x, 4, "per_shard")[1], EXPERTS)(x))
    assert (np.sort(got // (EXPERTS // 4), axis=1) == np.arange(4)).all()
    best = np.argmax(np.asarray(x).reshape(BATCH, 4, -1), axis=-1) + np.arange(4) * (EXPERTS // 4)
    np.testing.assert_array_equal(np.sort(got, axis=1), best)
    values = np.take_along_axis(np.asarray(x), got, axis=1)
    assert (np.diff(values, axis=1) <= 0).all()
    assert float(ops.recall(jnp.asarray(got), ops.topk(x, 4)[1])) < 1
    with pytest.raises(ValueError, match="per_shard takes k / 4 of each shard, but k is 5; write a multiple"):
        split(lambda x: ops.topk(x, 5, "per_shard")[1], EXPERTS)(x)


@pytest.mark.parametrize("mesh", [MESH, HOSTS], ids=["one host", "two hosts"])
@pytest.mark.parametrize("kind", ["numbers", "ties", "equal"])
def test_the_largest_of_a_split_batch_are_those_of_one_device(kind, mesh):
    x = {"ties": jnp.round(draw(BATCH, EXPERTS)), "equal": jnp.ones((BATCH, EXPERTS))}.get(kind, draw(BATCH, EXPERTS))

    def marked(x, count):
        with ops.sharded_over(mesh):
            return select.largest(jax.nn.relu(x), count)

    program = jax.jit(marked)
    for count in (1, 100, 300):
        np.testing.assert_array_equal(program(x, count), select.largest(jax.nn.relu(x), count))


def test_noise_is_that_of_the_token_and_the_expert():
    numbers = jnp.arange(5, 5 + BATCH)
    whole = ops.row_noise(jax.random.key(3), jnp.zeros((5 + BATCH, EXPERTS)))
    np.testing.assert_array_equal(ops.row_noise(jax.random.key(3), jnp.zeros((BATCH, EXPERTS)), numbers), whole[5:])

    def noise(x):
        own = ops.row_noise(jax.random.key(3), x, sharding.token_numbers(x.shape[0]))
        return sharding.all_gather_experts(own, 1)

    np.testing.assert_array_equal(split(noise, EXPERTS)(jnp.zeros((BATCH, EXPERTS))), whole[:BATCH])
