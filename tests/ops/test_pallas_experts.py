"""The TPU kernels equal `expert_major`, values and gradients, in Pallas' interpreter."""

import math
import re
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jhsae.codes import Codes, TreeCodes
from jhsae.ops import Decoder, ExpertEncoders, expert_major
from jhsae.ops.chunks import sized_for
from jhsae.ops.pallas import experts_tpu, tile_pipeline

K, SUB, ATOMS = 3, 4, 16


def distinct(batch, experts):
    rng = np.random.default_rng(0)
    return np.stack([rng.choice(experts, K, replace=False) for _ in range(batch)])


CASES = {  # (indices, experts, embed)
    "spread": (distinct(53, 9), 9, 128),
    "one expert takes all": (np.full((101, K), 4), 7, 128),  # three tiles; slots share an expert
    "last expert takes all": (np.full((15, K), 6), 7, 128),
    "few experts, several tiles each": (distinct(150, K) + 2, 7, 256),
    "one token": (distinct(1, 5), 5, 256),
    "one expert": (np.zeros((2, K), int), 1, 128),
    "blocks of experts": (distinct(101, 32), 32, 256),
    "blocks, one takes nearly all": (np.where(np.arange(300)[:, None] % 9, [[17, 5, 17]], distinct(300, 32)), 32, 128),
}
OPS = ("encode_atoms", "decode_atoms")


def arrays(op, case):
    (indices, experts, embed), rng = CASES[case], np.random.default_rng(1)
    outer, inner = (len(indices), embed), (*indices.shape, ATOMS)
    shapes = [outer, inner] if op == "encode_atoms" else [inner, outer]

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-1]), jnp.float32)

    x, cotangent = (normal(*shape) for shape in shapes)
    return jnp.asarray(indices, jnp.int32), (x, normal(experts, SUB, embed), normal(experts, ATOMS, SUB)), cotangent


def run(op, indices, weights, cotangent):
    @jax.jit
    def value_and_gradients(weights, cotangent):
        value, back = jax.vjp(lambda x, *w: op(x, indices, *w), *weights)
        return value, *back(cotangent)

    return value_and_gradients(weights, cotangent)


def on_arrays(op, module, **options):
    """An operation of a module as a function of (x or values, indices, wide matrices, atoms)."""

    def encode(x, indices, down, atom_enc):
        return module.encode_atoms(x, indices, ExpertEncoders(down, atom_enc), **options)

    def decode(values, indices, up, atom_dec):
        parents = Codes(jnp.zeros(indices.shape), indices, len(up))
        codes = TreeCodes(parents, Codes(values, None, atom_dec.shape[1]))
        return module.decode_atoms(codes, Decoder(up[:, 0], up, atom_dec), **options)

    return {"encode_atoms": encode, "decode_atoms": decode}[op]


@contextmanager
def interpreted(how=True):
    token = tile_pipeline.INTERPRET.set(how)
    try:
        yield
    finally:
        tile_pipeline.INTERPRET.reset(token)


@pytest.fixture(autouse=True)
def in_the_interpreter():
    with interpreted():
        yield


@pytest.mark.few(6)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_those_of_expert_major(case, op):
    a = arrays(op, case)
    for got, expected in zip(run(on_arrays(op, experts_tpu), *a), run(on_arrays(op, expert_major), *a), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("op", OPS)
def test_rows_that_arrive_as_late_as_they_may_are_waited_for(op):
    """The plain interpreter copies at once; this one when a copy is waited for, into memory that holds NaN."""
    a = arrays(op, "blocks of experts")
    with interpreted(pltpu.InterpretParams(dma_execution_mode="on_wait", uninitialized_memory="nan")):
        late = run(on_arrays(op, experts_tpu), *a)
    for got, expected in zip(late, run(on_arrays(op, expert_major), *a), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_the_sizes_of_tiles_and_of_parts_of_the_batch_do_not_matter(op, monkeypatch):
    a = arrays(op, "one expert takes all")
    one = run(on_arrays(op, experts_tpu), *a)
    monkeypatch.setattr(experts_tpu, "ROWS", 256)
    monkeypatch.setattr(experts_tpu, "SUMS", 4 * 128 * 40)  # 40 tokens
    for got, expected in zip(run(on_arrays(op, experts_tpu), *a), one, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_experts_that_nobody_selected_have_gradients_of_exactly_zero(op):
    indices, weights, cotangent = arrays(op, "few experts, several tiles each")
    for gradient in run(on_arrays(op, experts_tpu), indices, weights, cotangent)[2:]:
        assert not np.asarray(gradient)[[0, 1, 5, 6]].any()
        assert np.asarray(gradient)[2:5].any(axis=(1, 2)).all()


@pytest.mark.parametrize("op, kernels", [("encode_atoms", 3), ("decode_atoms", 2)])
def test_lowers_for_tpu_without_a_gathered_copy_of_the_rows(op, kernels):
    batch, experts, embed, k = 512, 64, 2048, 32

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    x = shape(batch, embed) if op == "encode_atoms" else shape(batch, k, ATOMS)
    weights = (x, shape(experts, SUB, embed), shape(experts, ATOMS, SUB))

    def loss(weights, indices):
        x, wide, atoms = weights
        return jnp.sum(on_arrays(op, experts_tpu)(x, indices, wide, atoms) ** 2)

    with interpreted(False), sized_for("tpu"):
        program = jax.jit(jax.grad(loss)).trace(weights, shape(batch, k, dtype=jnp.int32))
        text = program.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("custom_call @tpu_custom_call") == kernels
    sizes = [math.prod(map(int, found.split("x"))) for found in re.findall(r"tensor<([\dx]+)xf32>", text)]
    assert batch * embed <= max(sizes) < batch * k * embed / 4


@pytest.mark.parametrize("op", OPS)
def test_what_the_kernels_cannot_do_is_an_error(op):
    indices, (x, wide, atoms), _ = arrays(op, "one token")
    run = on_arrays(op, experts_tpu)
    with pytest.raises(ValueError, match="matrices of experts are bfloat16, expected float32; write kernel: auto"):
        run(x, indices, wide.astype(jnp.bfloat16), atoms)
    narrow = x[:, :100] if op == "encode_atoms" else x
    with pytest.raises(ValueError, match="embed is 100, expected a multiple of 128; write kernel: auto"):
        run(narrow, indices, wide[..., :100], atoms)
    with interpreted(False), pytest.raises(ValueError, match='kernel is "tpu", but the platform is cpu; write kernel'):
        run(x, indices, wide, atoms)
