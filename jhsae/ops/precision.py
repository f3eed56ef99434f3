"""The number format of products: parameters, gradients and sums stay float32.

Inside ``compute_in("bfloat16")`` the operands of the hot products are rounded to bfloat16 and their sums kept in
float32: half the bytes of every gathered row, and the tensor units' faster format. It is read when a function is
traced, so it must surround the tracing (`jhsae.training.step.make_step` does).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Precision = Literal["float32", "bfloat16"]
COMPUTE: ContextVar[Precision] = ContextVar("compute", default="float32")


@contextmanager
def compute_in(precision: Precision) -> Iterator[None]:
    """Products traced inside take operands of this format."""
    token = COMPUTE.set(precision)
    try:
        yield
    finally:
        COMPUTE.reset(token)


def operand(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The array in the format of products."""
    return a.astype(COMPUTE.get())


def source(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The array in the format of products, made before rows are gathered from it.

    The compiler would gather rows of float32 and round each of them as often as it is read.
    """
    return a if a.dtype == COMPUTE.get() else once(operand(a))


def once(a: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The array made here: the compiler moves no part of its making to where it is read, such as into a loop."""
    return jax.lax.optimization_barrier(a)


def dot(equation: str, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*out"]:
    """An einsum of two operands in the format of products, summed and given in float32."""
    return jnp.einsum(equation, operand(a), operand(b), preferred_element_type=jnp.float32)


def rounded(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """An operand in float32, rounded to the format of products: for sums that are written out."""
    return operand(a).astype(jnp.float32)
