"""``jhsae bench ops``: every op against its alternatives on one shape, held equal first, then timed interleaved.

An op that is differentiated is timed twice: forward, and forward with gradients for all its arrays.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jhsae.bench.cases import Case, cases, make_inputs
from jhsae.bench.machine import check_writable, load_average, machine, write
from jhsae.bench.memory import Memory
from jhsae.bench.shape import Build, Shape
from jhsae.bench.table import ops_table
from jhsae.bench.timing import check_rounds, interleave
from jhsae.errors import UserError, nearest


def command(words: Namespace) -> bool:
    """Measures, prints the table, writes the JSON."""
    check_writable(words.json)
    check_rounds(words.repeats, words.seconds)
    shape, build = Shape.of(words), Build(chunk=words.chunk)
    result = measure(shape, build.chunk, _words(words.only), _words(words.without), words.repeats, words.seconds)
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
    _check("only", only, found)
    _check("without", without, {name for case in found.values() for name in case.alternatives})
    jobs = [job for name, case in found.items() if not only or name in only for job in _jobs(name, case, without)]
    rows = [row for job in jobs for row in _rows(*job, repeats, seconds / len(jobs))]
    return {
        "verb": "bench ops",
        "shape": asdict(shape),
        "settings": {"chunk": chunk, "only": list(only), "without": list(without)},
        "rows": rows,
        "load_before": before,
        "load_after": load_average(),
        **machine(),
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
    """The worst array's greatest difference over its greatest entry."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True)
    return max(float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)) for a, b in pairs)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def _check(flag: str, given: tuple[str, ...], known: Any) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"--{flag} names '{name}', expected some of {', '.join(known)}{nearest(name, known)}")
