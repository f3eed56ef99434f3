"""The TPU kernels equal `expert_major`, values and gradients, in Pallas' interpreter."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jhsae.codes import Codes, TreeCodes
from jhsae.ops import Decoder, ExpertEncoders, expert_major
from jhsae.ops.pallas import experts_tpu

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


def kernel(op, interpret=True, **options):
    return on_arrays(op, experts_tpu, interpret=interpret, **options)


@pytest.mark.few(6)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_those_of_expert_major(case, op):
    a = arrays(op, case)
    for got, expected in zip(run(kernel(op), *a), run(on_arrays(op, expert_major), *a), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("op", OPS)
def test_rows_that_arrive_as_late_as_they_may_are_waited_for(op):
    """The plain interpreter copies at once; this one when a copy is waited for, into memory that holds NaN."""
    a = arrays(op, "few experts, several tiles each")
    late = kernel(op, pltpu.InterpretParams(dma_execution_mode="on_wait", uninitialized_memory="nan"))
    for got, expected in zip(run(late, *a), run(on_arrays(op, expert_major), *a), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_the_size_of_a_tile_does_not_matter(op):
    a = arrays(op, "one expert takes all")
    for got, expected in zip(run(kernel(op, rows=256), *a), run(kernel(op), *a), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_experts_that_nobody_selected_have_gradients_of_exactly_zero(op):
    indices, weights, cotangent = arrays(op, "few experts, several tiles each")
    for gradient in run(kernel(op), indices, weights, cotangent)[2:]:
        assert not np.asarray(gradient)[[0, 1, 5, 6]].any()
        assert np.asarray(gradient)[2:5].any(axis=(1, 2)).all()


@pytest.mark.parametrize("op, kernels", [("encode_atoms", 3), ("decode_atoms", 2)])
def test_lowers_for_tpu_without_a_gathered_copy_of_the_rows(op, kernels):
    batch, experts, embed, k = 512, 64, 256, 32

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    x = shape(batch, embed) if op == "encode_atoms" else shape(batch, k, ATOMS)
    weights = (x, shape(experts, SUB, embed), shape(experts, ATOMS, SUB))

    def loss(weights, indices):
        x, wide, atoms = weights
        return jnp.sum(on_arrays(op, experts_tpu)(x, indices, wide, atoms) ** 2)

    program = jax.jit(jax.grad(loss)).trace(weights, shape(batch, k, dtype=jnp.int32))
    text = program.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("custom_call @tpu_custom_call") == kernels
    sizes = [math.prod(map(int, found.split("x"))) for found in re.findall(r"tensor<([\dx]+)xf32>", text)]
    assert batch * embed <= max(sizes) < batch * k * embed / 4


@pytest.mark.parametrize("op", OPS)
def test_what_the_kernels_cannot_do_is_an_error(op):
    indices, (x, wide, atoms), _ = arrays(op, "one token")
    run = kernel(op)
    with pytest.raises(ValueError, match=rf"arrays are float32, bfloat16, float32.*write expert_major.{op}"):
        run(x, indices, wide.astype(jnp.bfloat16), atoms)
    with pytest.raises(ValueError, match="rows is 100, expected a multiple of 128; write rows=128"):
        kernel(op, rows=100)(x, indices, wide, atoms)
    if op == "decode_atoms":
        codes = Codes(jnp.zeros(indices.shape), indices, len(wide)), Codes(x, jnp.zeros(x.shape, int), ATOMS)
        with pytest.raises(ValueError, match=r"children have indices.*write expert_major.decode_atoms"):
            experts_tpu.decode_atoms(TreeCodes(*codes), Decoder(wide[:, 0], wide, atoms))
    narrow = x[:, :100] if op == "encode_atoms" else x
    with pytest.raises(ValueError, match=f"embed is 100, expected a multiple of 128; write expert_major.{op}"):
        run(narrow, indices, wide[..., :100], atoms)
