"""The headline step on this accelerator: plain XLA, kernels and the original's, interleaved. Not run on one yet.

    python experiments/bench/gpu_headline.py --json experiments/bench/gpu_headline.json

16,384 experts of 4 dimensions in 2304, 32,512 tokens, k 32 (`scale.yaml`), in under 8 minutes. First the kernels of the
experts are held equal to plain XLA on few experts, values and gradients. Forms: products in float32 and in bfloat16;
plain XLA, the platform's kernels for experts, and its kernel for top-k as well; last, plain XLA with parents decoded
from their selected rows, or by products with all rows (`jhsae/ops/dense_rows.py`). Forms that are not compiled by
``--compile-seconds`` are left out and named. The original's update does not fit with the whole batch; it has fewer
tokens, and its time is given per token of ours. Says at the end what to set as default. Exit code 1: kernels are wrong.
"""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jhsae import ops
from jhsae.bench import ours
from jhsae.bench.inputs import Build, Shape, random_rows
from jhsae.bench.measurement import Timings, environment, interleave, write
from jhsae.bench.original import OriginalTraining
from jhsae.bench.step import to_original
from jhsae.codes import Codes, TreeCodes
from jhsae.ops import Precision, dense_rows
from jhsae.ops.precision import compute_in

GIB = 2**30
NEVER, ALWAYS = 0, 1 << 30
LIMITS: Mapping[Precision, float] = {"float32": 1e-5, "bfloat16": 2**-6}  # of the largest entry
ORIGINAL = "original"


class Form(NamedTuple):
    """How a step is computed; None is the default."""

    precision: Precision
    kernel: str | None = None
    topk: str | None = None
    flops_per_byte: int | None = None


def forms(kernel: str | None) -> dict[str, Form]:
    """All forms by name, those to be compiled first in front; with the `kernel` of the platform, if it has one."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    found = {f"{precision}, plain": Form(precision) for precision in precisions}
    if kernel:
        found |= {f"{precision}, experts": Form(precision, kernel) for precision in precisions}
        found |= {f"{precision}, experts and top-k": Form(precision, kernel, kernel) for precision in precisions}
    for rows, most in (("selected rows", NEVER), ("all rows", ALWAYS)):
        found |= {f"{precision}, {rows}": Form(precision, flops_per_byte=most) for precision in precisions}
    return found


@contextmanager
def flops_per_byte(number: int | None) -> Iterator[None]:
    """Products with all rows are taken never (0), always, or as usual (None)."""
    before = dense_rows.FLOPS_PER_BYTE
    dense_rows.FLOPS_PER_BYTE = before if number is None else number
    try:
        yield
    finally:
        dense_rows.FLOPS_PER_BYTE = before


def errors(kernel: str, shape: Shape) -> dict[str, float]:
    """The greatest difference of a kernel from plain XLA over the greatest entry, values and gradients."""
    keys = iter(jax.random.split(jax.random.key(1), 6))
    draw = lambda *size: jax.random.normal(next(keys), size) / size[-1] ** 0.5  # noqa: E731
    indices = jax.random.randint(next(keys), (shape.batch, shape.k), 0, shape.experts - 1)  # the last has no token
    x, children = draw(shape.batch, shape.embed), draw(shape.batch, shape.k, shape.atoms)
    wide, atoms = draw(shape.experts, shape.sub, shape.embed), draw(shape.experts, shape.atoms, shape.sub)

    def run(kernel: Any) -> Any:
        def both(x: Array, children: Array, wide: Array, atoms: Array) -> tuple[Array, Array]:
            parents = Codes(jnp.zeros(indices.shape), indices, shape.experts)
            codes = TreeCodes(parents, Codes(children, None, shape.atoms))
            encoded = ops.encode_atoms(x, indices, ops.ExpertEncoders(wide, atoms), kernel)
            return encoded, ops.decode_atoms(codes, ops.Decoder(wide[:, 0], wide, atoms), kernel)

        def with_gradients(*arrays: Array) -> Any:
            out, back = jax.vjp(both, *arrays)
            return out, back((children, x))

        return jax.jit(with_gradients)(x, children, wide, atoms)

    found = {}
    for precision in LIMITS:
        with compute_in(precision), jax.default_matmul_precision("highest"):
            pairs = zip(jax.tree.leaves(run(kernel)), jax.tree.leaves(run("tiles")), strict=True)
            found[precision] = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)
    return found


def compiled(words: Namespace, shape: Shape, batch: Array, began: float) -> tuple[dict[str, Any], list[str]]:
    """The programs by name, and the forms that there was no time for."""
    known, programs, late = forms(words.kernel), dict[str, Any](), []
    for name in words.only or known:
        form = known[name]
        if programs and time.monotonic() - began > words.compile_seconds:
            late.append(name)
            continue
        jax.clear_caches()  # a function that was traced for another form would be found again
        with flops_per_byte(form.flops_per_byte):
            start = ours.scale(shape, Build(kernel=form.kernel, topk=form.topk))
            programs[name] = ours.Training(start, batch, form.precision)
        size = programs[name].memory.total / GIB
        print(f"{name}: compiled, {size:.2f} GiB; {time.monotonic() - began:.0f} s", flush=True)
    return programs, late


def table(programs: Mapping[str, Any], times: Timings, tokens: Mapping[str, int]) -> dict[str, Any]:
    """Prints a line per program and gives its numbers."""
    first, found = next(iter(programs)), {}
    print(f"{'':32}{'ms':>10}{'tokens/s':>14}{f'of {first} (least to most)':>44}")
    for name, program in programs.items():
        ms, ratio = times.milliseconds(name), times.ratio(name, first)
        share = tokens[first] / tokens[name]
        over = " ".join(f"{share * part:.2f}" for part in (ratio.median, ratio.min, ratio.max))
        print(f"{name:32}{ms.median:10.1f}{1000 * tokens[name] / ms.median:14,.0f}{over:>44}")
        found[name] = {
            "ms": asdict(ms),
            "tokens": tokens[name],
            "over_first": asdict(ratio),
            "memory": program.memory.to_dict(),
        }
    return found


def advice(times: Timings, right: bool, kernel: str | None) -> list[str]:
    """What to set as default here: the fastest form of each precision that was faster than plain in every round."""
    lines = []
    for precision in LIMITS:
        plain, known = f"{precision}, plain", forms(kernel)
        if plain not in times.seconds:
            continue
        others = [name for name in known if name != plain and name in times.seconds]
        usable = [name for name in others if known[name].precision == precision and (right or not known[name].kernel)]
        faster = [name for name in usable if times.ratio(name, plain).max < 1]
        best = min(faster, key=lambda name: times.ratio(name, plain).median, default=None)
        if best is None:
            lines.append(f"{precision}: keep plain XLA, nothing was faster in every round")
            continue
        keys = {"sae.kernel": known[best].kernel, "sae.route.topk": known[best].topk}
        words = " ".join(f"{key}={value}" for key, value in keys.items() if value)
        instead = words or f"jhsae.ops.dense_rows.FLOPS_PER_BYTE={known[best].flops_per_byte}"
        lines.append(f"{precision}: set {instead}: {times.ratio(best, plain).median:.2f} of plain's time")
    return lines


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("embed", 2304), ("experts", 16_384), ("batch", 32_512), ("original-batch", 508)):
        parser.add_argument(f"--{name}", type=int, default=number, help="(%(default)s)")
    own = next((name for name in ("gpu", "tpu") if name == jax.default_backend()), None)
    parser.add_argument("--kernel", choices=("gpu", "tpu"), default=own, help="(of this platform: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=forms("gpu"), help="these forms")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    parser.add_argument("--compile-seconds", type=float, default=270.0, help="no further form after (%(default)s)")
    parser.add_argument("--seconds", type=float, default=90.0, help="no further round after so long (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    words = parser.parse_args()
    if words.only and any(name not in forms(words.kernel) for name in words.only):
        parser.error(f"--only names a kernel, but {jax.default_backend()} has none; write --kernel gpu or tpu")
    shape, began = Shape(words.embed, words.experts, words.batch), time.monotonic()
    few = Shape(words.embed, min(words.experts, 256), min(words.batch, 512))
    difference = errors(words.kernel, few) if words.kernel else {}
    right = all(error <= LIMITS[precision] for precision, error in difference.items())
    for precision, error in difference.items():
        print(f"{words.kernel} differs from plain XLA in {precision} by {error:.1e} of the largest entry", flush=True)
    batch = jnp.asarray(random_rows(shape.batch, shape.embed))
    programs, late = compiled(words, shape, batch, began)
    tokens = dict.fromkeys(programs, shape.batch)
    if words.original_batch:
        fewer = batch[: words.original_batch]
        programs[ORIGINAL] = OriginalTraining(to_original(ours.faithful(shape, Build()).sae), fewer, shape.k)
        tokens[ORIGINAL] = len(fewer)
    times = interleave(programs, words.rounds, words.seconds)
    found = {"shape": asdict(shape), "errors": difference, "steps": table(programs, times, tokens), "left_out": late}
    lines = advice(times, right, words.kernel)
    print(*lines, *(f"left out for want of time: {name}" for name in late), sep="\n")
    write(found | {"advice": lines, "seconds": times.seconds, **environment()}, words.json)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
