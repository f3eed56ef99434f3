"""The ops that ``jhsae bench ops`` compares: every group is some functions of the same arguments and the same result.

Alternatives are read from `ops.Method` and `ops.Kernel`, so that a new one is measured as soon as it exists. The
orthogonality penalty and the tracker have the original's way beside ours.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae import ops
from jhsae.bench import original
from jhsae.bench.batch import random_rows
from jhsae.bench.ours import faithful
from jhsae.bench.shape import Build, Shape
from jhsae.codes import Codes, TreeCodes
from jhsae.sae import HierarchicalSAE


class Case(NamedTuple):
    """`alternatives` compute one thing from `arguments`; those at `wrt` have gradients."""

    alternatives: dict[str, Callable]
    arguments: tuple[Array, ...]
    wrt: tuple[int, ...] = ()


class Inputs(NamedTuple):
    """One batch as the ops meet it in a step: experts chosen by the starting router."""

    sae: HierarchicalSAE
    x: Float[Array, "batch embed"]
    pre: Float[Array, "batch experts"]
    values: Float[Array, "batch k"]
    indices: Int[Array, "batch k"]
    atoms: Float[Array, "batch k atoms"]


def make_inputs(shape: Shape) -> Inputs:
    """The inputs of every case."""
    sae, _ = faithful(shape, Build())
    x = jnp.asarray(random_rows(shape.batch, shape.embed))
    pre = jnp.where((pre := x @ sae.encoders()[0].T) >= shape.offset, pre, 0.0)
    values, indices = jax.lax.top_k(pre, shape.k)
    atoms = jax.random.normal(jax.random.key(1), (shape.batch, shape.k, shape.atoms))
    return Inputs(sae, x, pre, values, indices.astype(jnp.int32), atoms)


def cases(inputs: Inputs, chunk: int | None) -> dict[str, Case]:
    """Every group by name; `chunk` bounds the tokens that a kernel works on at once, where it can."""
    sae, experts = inputs.sae, inputs.sae.experts
    router_enc, down, atom_enc = sae.encoders()
    winners, best = jnp.max(inputs.atoms, axis=-1, keepdims=True), jnp.argmax(inputs.atoms, axis=-1, keepdims=True)

    def kernels(op: Callable) -> dict[str, Callable]:
        return {name: partial(op, kernel=name, chunk=chunk) for name in get_args(ops.Kernel)}

    return {
        "topk": Case(
            {name: partial(ops.topk, k=inputs.indices.shape[1], method=name) for name in get_args(ops.Method)},
            (inputs.pre,),
        ),
        "encode_atoms": Case(kernels(_encode_atoms), (inputs.x, inputs.indices, down, atom_enc), (0, 2, 3)),
        "decode_atoms": Case(
            kernels(_decode_atoms),
            (winners, best.astype(jnp.int32), inputs.indices, sae.up, sae.atom_dec),
            (0, 3, 4),
        ),
        "decode_rows": Case(kernels(_decode_rows), (inputs.values, inputs.indices, sae.router_dec), (0, 2)),
        "gram": Case({"gram": _gram, "pairs": _pairs}, (router_enc, jnp.roll(sae.router_dec, 1, axis=0)), (0, 1)),
        "tracker": Case(
            {"scatter": partial(_scatter, experts), "repeat": partial(_repeat, experts)},
            (inputs.indices, inputs.atoms),
        ),
    }


def _encode_atoms(x: Array, indices: Array, down: Array, atom_enc: Array, **how: Any) -> Array:
    return ops.encode_atoms(x, indices, ops.ExpertEncoders(down, atom_enc), **how)


def _decode_atoms(values: Array, atoms: Array, indices: Array, up: Array, atom_dec: Array, **how: Any) -> Array:
    parents = Codes(jnp.ones(indices.shape), indices, len(up))
    codes = TreeCodes(parents, Codes(values, atoms, atom_dec.shape[1]))
    return ops.decode_atoms(codes, ops.Decoder(up[:, 0], up, atom_dec), **how)  # which reads no row of an expert


def _decode_rows(values: Array, indices: Array, rows: Array, **how: Any) -> Array:
    return ops.decode_rows(Codes(values, indices, len(rows)), rows, **how)


def _gram(a: Float[Array, "n d"], b: Float[Array, "n d"]) -> Float[Array, ""]:
    return ops.off_diagonal_mean(ops.unit_rows(a), ops.unit_rows(b))


def _pairs(a: Float[Array, "n d"], b: Float[Array, "n d"]) -> Float[Array, ""]:
    """The same through all n x n inner products."""
    squares = (ops.unit_rows(a) @ ops.unit_rows(b).T) ** 2
    n = len(squares)
    return (jnp.sum(squares) - jnp.sum(jnp.diag(squares))) / (n * (n - 1.0))


def _scatter(experts: int, indices: Int[Array, "batch k"], atoms: Float[Array, "batch k atoms"]) -> Array:
    count = atoms.shape[-1]
    flat = (indices[..., None] * count + jnp.arange(count, dtype=jnp.int32)).reshape(len(indices), -1)
    fired = Codes(jnp.maximum(atoms, 0.0).reshape(flat.shape), flat, experts * count).fired()
    return fired.reshape(experts, count)


def _repeat(experts: int, indices: Int[Array, "batch k"], atoms: Float[Array, "batch k atoms"]) -> Array:
    """The original's: one tracker for every token of the batch."""
    return original.track(jnp.zeros((experts, atoms.shape[-1])), original.Selected(indices, atoms))
