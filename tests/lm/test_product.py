import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.lm.product import product

SPECS = ["btd,od->bto", "btkgh,bskh->bkgts", "bkgts,bskh->btkgh"]
SIZES = {"b": 2, "t": 3, "d": 4, "o": 5, "k": 2, "g": 3, "h": 4, "s": 3}


def random(axes, seed):
    shape = tuple(SIZES[a] for a in axes)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS)
def test_product_and_its_cotangents_are_einsums_of_rounded_operands(spec, dtype):
    operands, out = spec.split("->")
    (a, b), g = (random(axes, i) for i, axes in enumerate(operands.split(","))), random(out, 2)

    @jax.jit
    def pullback(a, b, g):
        found, cotangents = jax.vjp(lambda a, b: product(spec, dtype, a, b), a, b)
        return found, *cotangents(g)

    ra, rb, rg = (np.asarray(x.astype(dtype), np.float64) for x in (a, b, g))
    left, right = operands.split(",")
    expected = (
        np.einsum(spec, ra, rb),
        np.einsum(f"{out},{right}->{left}", rg, rb),
        np.einsum(f"{out},{left}->{right}", rg, ra),
    )
    for ours, theirs in zip(pullback(a, b, g), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bfloat16_weights_get_bfloat16_gradients():
    a, w = random("btd", 0), random("od", 1).astype(jnp.bfloat16)
    grads = jax.grad(lambda a, w: product(SPECS[0], "bfloat16", a, w).sum(), argnums=(0, 1))(a, w)
    assert [g.dtype for g in grads] == [jnp.float32, jnp.bfloat16]
