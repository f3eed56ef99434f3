"""The kernels for NVIDIA GPUs: each equals its equation in two interpreters, and lowers for CUDA on a CPU."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_interpreter import InterpretGPUParams

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.ops.chunks import sized_for
from jhsae.ops.pallas import wide_gpu
from jhsae.ops.precision import compute_in

BATCH, EXPERTS, ROWS = 11, 6, 5


@pytest.fixture(autouse=True)
def in_the_interpreter():
    token = wide_gpu.INTERPRET.set(True)
    yield
    wide_gpu.INTERPRET.reset(token)


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng([*shape]).normal(size=shape), dtype)


def project(x, wide):
    token = jnp.asarray(np.random.default_rng(0).integers(0, BATCH, (4, ROWS)), jnp.int32)
    expert, in_use = jnp.array([1, 1, 4, 5]), np.array([5, 2, 1, 0])
    of_format = wide.astype(x.dtype).astype(jnp.float32)
    rows = jnp.einsum("trd,tsd->trs", x[token].astype(jnp.float32), of_format[expert], precision="highest")
    want = jnp.where((np.arange(ROWS) < in_use[:, None])[..., None], rows, 0)
    return jax.jit(wide_gpu.project)(x, wide, expert, jnp.asarray(in_use), token), want


def weights(x, wide):
    first, size = np.array([0, 3, 3, 20, 29, 30]), np.array([3, 0, 17, 9, 1, 0])
    token = jnp.asarray(np.random.default_rng(0).integers(0, BATCH, 40), jnp.int32)
    left, groups = draw(40, wide.shape[1]), wide_gpu.Groups(jnp.asarray(first), jnp.asarray(size))
    parts = [left[a : a + n].T @ x[token[a : a + n]].astype(jnp.float32) for a, n in zip(first, size, strict=True)]
    return jax.jit(wide_gpu.weights)(x, left, token, groups), jnp.stack(parts)


def spread(x, wide):
    indices = jnp.asarray(np.random.default_rng(0).integers(0, EXPERTS, (BATCH, 10)), jnp.int32)
    numbers, wide = draw(BATCH, 10, wide.shape[1]), wide.astype(x.dtype)
    want = jnp.einsum("bks,bksd->bd", numbers, wide[indices].astype(jnp.float32), precision="highest")
    return jax.jit(wide_gpu.spread)(numbers, indices, wide), want


KERNELS = {"project": project, "weights": weights, "spread": spread}
each = pytest.mark.parametrize("kernel", KERNELS)


def check(kernel, sub, embed, dtype):
    got, want = KERNELS[kernel](draw(BATCH, embed, dtype=dtype), draw(EXPERTS, sub, embed))
    assert got.dtype == jnp.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * float(jnp.max(jnp.abs(want))))


@pytest.mark.few(4)
@pytest.mark.parametrize("sub, embed", [(4, 256), (3, 384), (1, 128), (32, 256)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each
def test_equals_its_equation(kernel, dtype, sub, embed):
    check(kernel, sub, embed, dtype)


@each
def test_the_sizes_of_blocks_do_not_matter(kernel, monkeypatch):
    """Several blocks of columns, and matrices in two parts."""
    monkeypatch.setattr(wide_gpu, "REGISTERS", 8)
    monkeypatch.setattr(wide_gpu, "SLICE", 1024)
    check(kernel, 4, 512, jnp.float32)


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each
def test_stays_inside_its_arrays(kernel, dtype, monkeypatch):
    """Mosaic GPU's own interpreter, slow: a read out of bounds is an error, memory that is not written is NaN."""
    monkeypatch.setattr(wide_gpu, "TOKENS", 6)  # does not divide the batch
    token = wide_gpu.INTERPRET.set(InterpretGPUParams(out_of_bounds_reads="raise", uninitialized_memory="nan"))
    check(kernel, 2, 128, dtype)
    wide_gpu.INTERPRET.reset(token)


def test_blocks_of_columns():
    assert [wide_gpu.largest_block(2304, most) for most in (100, 128, 300, 1000, 5000)] == [128, 128, 256, 768, 2304]
    assert wide_gpu.largest_block(640, 639) == 128


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def encode(x, indices, wide, atoms):
    return ops.encode_atoms(x, indices, ops.ExpertEncoders(wide, atoms), "gpu")


def decode(children, indices, wide, atoms):
    codes = TreeCodes(Codes(jnp.zeros(indices.shape), indices, len(wide)), Codes(children, None, atoms.shape[1]))
    return ops.decode_atoms(codes, ops.Decoder(wide[:, 0], wide, atoms), "gpu")


# encode: project; weights of `down` and by expert, spread. decode: spread; project, weights of `up` and by expert
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("op, kernels", [(encode, 4), (decode, 4)])
def test_lowers_for_cuda_without_rows_of_pairs(op, kernels, precision):
    batch, experts, embed, k, sub, atoms = 512, 64, 2304, 32, 4, 16
    first = shape(batch, embed) if op is encode else shape(batch, k, atoms)
    arrays = (first, shape(experts, sub, embed), shape(experts, atoms, sub))

    def loss(arrays, indices):
        x, wide, atoms = arrays
        return jnp.sum(op(x, indices, wide, atoms) ** 2)

    token = wide_gpu.INTERPRET.set(None)
    with sized_for("cuda"), compute_in(precision):
        program = jax.jit(jax.grad(loss)).trace(arrays, shape(batch, k, dtype=jnp.int32))
        text = program.lower(lowering_platforms=("cuda",)).as_text()
    wide_gpu.INTERPRET.reset(token)
    assert len(re.findall(r"custom_call @mosaic_gpu", text)) == kernels
    sizes = [math.prod(map(int, found.split("x"))) for found in re.findall(r"tensor<([\dx]+)x\w+>", text)]
    assert batch * embed <= max(sizes) < batch * k * embed / 4


def test_what_the_kernels_cannot_do_is_an_error():
    indices = jnp.zeros((2, 1), jnp.int32)
    with pytest.raises(UserError, match="embed is 100, expected a multiple of 128; write kernel: auto"):
        encode(draw(2, 100), indices, draw(3, 4, 100), draw(3, 5, 4))
    with pytest.raises(UserError, match="sub is 33, expected 1 to 32; write kernel: auto"):
        decode(draw(2, 1, 5), indices, draw(3, 33, 128), draw(3, 5, 33))
    with pytest.raises(UserError, match="matrices of experts are bfloat16, expected float32; write kernel: auto"):
        encode(draw(2, 128), indices, draw(3, 4, 128, dtype=jnp.bfloat16), draw(3, 5, 4))
    token = wide_gpu.INTERPRET.set(None)
    with pytest.raises(UserError, match='kernel is "gpu", but the platform is cpu; write kernel: auto'):
        encode(draw(2, 128), indices, draw(3, 4, 128), draw(3, 5, 4))
    wide_gpu.INTERPRET.reset(token)
