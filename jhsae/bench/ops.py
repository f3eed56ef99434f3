"""``jhsae bench ops``: every op against its alternatives on one shape, compared first, then timed interleaved.

A case is a group of functions of the same arguments with the same result. Alternatives are read from `ops.Method` and
`ops.Kernel`, so that a new one is measured as soon as it exists; the orthogonality penalty and the tracker have the
original's implementation beside ours. A differentiable op is timed twice: forward, and forward with the gradients of
all its arrays.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jhsae import ops
from jhsae.bench import original
from jhsae.bench.inputs import Build, Shape, random_rows
from jhsae.bench.measurement import Memory, check_rounds, check_writable, environment, interleave, load_average, write
from jhsae.bench.ours import faithful
from jhsae.bench.table import ops_table
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError, nearest
from jhsae.sae import HierarchicalSAE


class Case(NamedTuple):
    """`alternatives` compute one thing from `arguments`; those at `wrt` have gradients."""

    alternatives: dict[str, Callable]
    arguments: tuple[Array, ...]
    wrt: tuple[int, ...] = ()


class Inputs(NamedTuple):
    """One batch as in a training step: experts selected by the initial router."""

    sae: HierarchicalSAE
    x: Float[Array, "batch embed"]
    pre: Float[Array, "batch experts"]
    values: Float[Array, "batch k"]
    indices: Int[Array, "batch k"]
    atoms: Float[Array, "batch k atoms"]


def make_inputs(shape: Shape) -> Inputs:
    """The inputs of every case."""
    sae = faithful(shape, Build()).sae
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
        return {name: partial(op, kernel=name, chunk=chunk) for name in _here(ops.Kernel)}

    return {
        "topk": Case(
            {name: partial(ops.topk, k=inputs.indices.shape[1], method=name) for name in _here(ops.Method)},
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


def _here(choices: Any) -> list[Any]:
    """Those that this platform can run."""
    return [name for name in get_args(choices) if name not in ("tpu", "gpu") or name == jax.default_backend()]


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
    """The same by all n x n inner products."""
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


def command(words: Namespace) -> bool:
    """Runs the verb: measures, prints the table, writes the JSON."""
    check_writable(words.json)
    check_rounds(words.repeats, words.seconds)
    shape, build = Shape.of(words), Build(chunk=words.chunk)
    result = measure(
        shape, build.chunk, _parse_names(words.only), _parse_names(words.without), words.repeats, words.seconds
    )
    print(ops_table(result))
    write(result, words.json)
    return True


def measure(
    shape: Shape,
    chunk: int | None = None,
    only: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    repeats: int = 9,
    seconds: float = 120.0,
) -> dict[str, Any]:
    """One row for every alternative of every group, as plain data.

    `only` names groups, `without` alternatives to leave out; `seconds` are shared by the groups.
    """
    before = load_average()
    found = cases(make_inputs(shape), chunk)
    _check_names("only", only, found)
    _check_names("without", without, {name for case in found.values() for name in case.alternatives})
    jobs = [job for name, case in found.items() if not only or name in only for job in _jobs(name, case, without)]
    rows = [row for job in jobs for row in _rows(*job, repeats, seconds / len(jobs))]
    return {
        "verb": "bench ops",
        "shape": asdict(shape),
        "settings": {"chunk": chunk, "only": list(only), "without": list(without)},
        "rows": rows,
        "load_before": before,
        "load_after": load_average(),
        **environment(),
    }


def _jobs(name: str, case: Case, without: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Callable], tuple]]:
    kept = {alternative: fn for alternative, fn in case.alternatives.items() if alternative not in without}
    if kept:
        yield name, kept, case.arguments
    if kept and case.wrt:
        yield f"{name}, gradients", {k: _with_gradients(fn, case) for k, fn in kept.items()}, case.arguments


def _with_gradients(fn: Callable, case: Case) -> Callable:
    def scalar(*arguments: Array) -> Array:
        out = fn(*arguments)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype).reshape(out.shape)))

    return jax.value_and_grad(scalar, argnums=case.wrt)


def _rows(
    name: str, alternatives: dict[str, Callable], arguments: tuple, repeats: int, seconds: float
) -> Iterator[dict[str, Any]]:
    compiled = {key: jax.jit(fn).lower(*arguments).compile() for key, fn in alternatives.items()}
    outputs = {key: jax.device_get(program(*arguments)) for key, program in compiled.items()}
    first = next(iter(outputs))
    programs = {key: _blocking(program, arguments) for key, program in compiled.items()}
    times = interleave(programs, repeats, seconds)
    for key, program in compiled.items():
        yield {
            "op": name,
            "alternative": key,
            "ms": asdict(times.milliseconds(key)),
            "over_first": asdict(times.ratio(key, first)),
            "error": _error(outputs[key], outputs[first]),
            "memory": Memory.of(program).to_dict(),
            "rounds": times.rounds,
        }


def _blocking(program: Callable, arguments: tuple) -> Callable[[], object]:
    return lambda: jax.block_until_ready(program(*arguments))


def _error(ours: PyTree[np.ndarray], reference: PyTree[np.ndarray]) -> float:
    """Maximum over arrays of the maximum absolute difference over the maximum absolute entry."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True)
    return max(float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)) for a, b in pairs)


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def _check_names(flag: str, names: tuple[str, ...], known: Any) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"--{flag} names '{name}', expected some of {', '.join(known)}{nearest(name, known)}")
