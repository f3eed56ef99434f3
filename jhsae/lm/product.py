"""Matrix products with rounded operands and float32 sums, in the forward and in the backward direction.

``product("A,B->C", dtype, a, b)`` is einsum with a and b rounded to `dtype` and summed in float32. Its cotangents
are the einsums "C,B->A" and "A,C->B" under the same rule, so that the backward pass too runs on a matrix unit that
takes bfloat16; JAX's own rule would multiply a float32 cotangent by a bfloat16 operand. Every index must
appear in two of A, B, C. Reverse-mode differentiation only.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(spec: str, dtype: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """einsum(spec, a, b), operands in `dtype`, result float32."""
    # Float32 operands stay float32 on devices whose default would round them.
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)


def _forward(spec, dtype, a, b):
    return product(spec, dtype, a, b), (a, b)


def _backward(spec, dtype, saved, cotangent):
    a, b = saved
    operands, out = spec.split("->")
    left, right = operands.split(",")
    da = product(f"{out},{right}->{left}", dtype, cotangent, b)
    db = product(f"{left},{out}->{right}", dtype, a, cotangent)
    return da.astype(a.dtype), db.astype(b.dtype)


product.defvjp(_forward, _backward)
