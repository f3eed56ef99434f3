"""The headline step on this accelerator: every form of it beside the original's, interleaved. Not run on one yet.

    python experiments/bench/headline.py --json experiments/bench/headline.json

16,384 experts of 4 dimensions in 2304, 32,512 tokens, k 32 (`scale.yaml`). Forms: products in float32 and in bfloat16;
parents decoded from their selected rows, or by products with all rows (`jhsae/ops/dense_rows.py`; never on a CPU). The
original's update does not fit with the whole batch; it has fewer tokens, and its time is given per token of ours.
"""

import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp

from jhsae.bench import ours
from jhsae.bench.inputs import Build, Shape, random_rows
from jhsae.bench.measurement import environment, interleave, write
from jhsae.bench.original import OriginalTraining
from jhsae.bench.step import to_original
from jhsae.ops import dense_rows

FORMS = {
    f"{precision}, {rows}": (precision, most)
    for precision in ("float32", "bfloat16")
    for rows, most in (("selected rows", 0), ("all rows", 1 << 30))
}
GIB = 2**30


@contextmanager
def flops_per_byte(number: int) -> Iterator[None]:
    """Products with all rows are taken never (0) or always."""
    before, dense_rows.FLOPS_PER_BYTE = dense_rows.FLOPS_PER_BYTE, number
    try:
        yield
    finally:
        dense_rows.FLOPS_PER_BYTE = before


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("embed", 2304), ("experts", 16_384), ("batch", 32_512), ("original-batch", 508)):
        parser.add_argument(f"--{name}", type=int, default=number, help="(%(default)s)")
    parser.add_argument("--only", nargs="+", choices=FORMS, default=[*FORMS], help="these forms")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="no further round after so long (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    words = parser.parse_args()
    shape, began = Shape(words.embed, words.experts, words.batch), time.monotonic()
    batch = jnp.asarray(random_rows(shape.batch, shape.embed))
    start, programs = ours.scale(shape, Build()), {}
    for name in words.only:
        precision, most = FORMS[name]
        jax.clear_caches()  # a function that was traced for another form would be found again
        with flops_per_byte(most):
            programs[name] = ours.Training(start, batch, precision)
        print(
            f"{name}: compiled, {programs[name].memory.total / GIB:.2f} GiB; {time.monotonic() - began:.0f} s",
            flush=True,
        )
    fewer = batch[: words.original_batch]
    if len(fewer):
        programs["original"] = OriginalTraining(to_original(ours.faithful(shape, Build()).sae), fewer, shape.k)
    times, found = interleave(programs, words.rounds, words.seconds), {}
    first = words.only[0]
    print(f"{'':28}{'ms':>10}{'tokens/s':>14}{f'of {first} (least to most)':>44}")
    for name, program in programs.items():
        tokens = len(fewer) if name == "original" else shape.batch
        ms, ratio = times.milliseconds(name), times.ratio(name, first)
        over = " ".join(f"{shape.batch / tokens * part:.2f}" for part in (ratio.median, ratio.min, ratio.max))
        print(f"{name:28}{ms.median:10.1f}{1000 * tokens / ms.median:14,.0f}{over:>44}")
        found[name] = {
            "ms": asdict(ms),
            "tokens": tokens,
            "over_first": asdict(ratio),
            "memory": program.memory.to_dict(),
        }
    write({"shape": asdict(shape), "steps": found, "seconds": times.seconds, **environment()}, words.json)


if __name__ == "__main__":
    main()
