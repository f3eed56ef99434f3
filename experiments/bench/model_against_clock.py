"""The times that `jhsae plan`'s cost model predicts for training steps, beside their measured times on this machine.

    python experiments/bench/model_against_clock.py --json experiments/bench/model_against_clock.json

Each variant is compiled once; its products and bytes are counted from the compiled program (`jhsae.plan.cost.work_of`)
and turned into seconds by the same roofline as for a TPU (`jhsae.plan.estimate.step_time`), with the rates of a matrix
product and of a copy in place that are timed in the same rounds; a copy to new memory is timed for comparison. Where a
loop runs until the data end, plan assumes that every token has k experts and all experts are used equally; so does
this. Variants: `scale.yaml` with each kernel, flat TopK SAEs with as many features as experts and with 17 times as
many, and a flat pursuit.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kendalltau

from jhsae.bench import ours
from jhsae.bench.inputs import Build, Shape, make_batch
from jhsae.bench.measurement import MedianRange, Memory, Timings, environment, interleave, load_average, write
from jhsae.bench.table import size
from jhsae.plan.cost import Work, work_of
from jhsae.plan.estimate import step_time
from jhsae.plan.loops import TileLoad
from jhsae.plan.topology import Chip, Places

KERNELS = ("tiles", "gather", "dense")
ALL = "{_target_: jhsae.sae.AllRows}"
PRODUCT, COPIED = 2048, 2**26  # rows and columns of the product; float32 numbers that are copied
COPIED_BYTES = 2 * 4 * COPIED  # read and written
ALONE = Places(np.zeros((1, 1), int), np.zeros(1, int))


def starts(shape: Shape) -> dict[str, tuple[ours.Start, int, int]]:
    """Each variant, its features at the top level, and how many of them a token selects at most."""
    scale = {f"scale, {kernel}": (ours.scale(shape, Build(kernel)), shape.experts, shape.k) for kernel in KERNELS}
    wide = 17 * shape.experts
    flat = {
        f"flat {n}, {kernel}": (ours.flat(shape, Build(kernel), n, shape.k), n, shape.k)
        for n in (shape.experts, wide)
        for kernel in ("gather", "dense")
    }
    return scale | flat | {"pursuit": (ours.tree(shape, 0, ALL), shape.experts, shape.k)}


class Copy:
    """Adds 1 to an array in place: every number is read and written once, and no memory is asked of the system."""

    def __init__(self) -> None:
        self._x = jnp.zeros(COPIED)
        self._add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def __call__(self) -> None:
        self._x = self._add(self._x).block_until_ready()


def rate_programs() -> dict[str, Callable[[], object]]:
    """A matrix product, the copy, and one whose result is new memory each time; blocking."""
    a, x = jnp.ones((PRODUCT, PRODUCT)), jnp.ones(COPIED)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    return {
        "product": lambda: product(a, a).block_until_ready(),
        "copy": Copy(),
        "copy to new memory": lambda: copy(x).block_until_ready(),
    }


def machine(times: Timings) -> Chip:
    """This machine as a chip: the median rates of the product and of the copy, and sizes that nothing is padded to."""
    flops = times.per_second("product", 2 * PRODUCT**3).median
    bandwidth = times.per_second("copy", COPIED_BYTES).median
    return Chip("this machine", flops, 1, float("inf"), bandwidth, float("inf"), 1, 1, None)


def compared(works: dict[str, Work], memory: dict[str, Memory], times: Timings) -> dict[str, Any]:
    """Predicted and measured times of every variant, every pair of them, and how well the orders agree."""
    chip, variants, pairs = machine(times), {}, []
    predicted = {name: step_time(work, chip, ALONE) for name, work in works.items()}
    for name, work in works.items():
        ms = times.milliseconds(name)
        variants[name] = {
            "predicted_ms": 1000 * predicted[name].step,
            "ms": asdict(ms),
            "measured_over_predicted": ms.median / (1000 * predicted[name].step),
            "bound": predicted[name].bound,
            "memory": memory[name].to_dict(),
            "flops": work.flops,
            "bytes": work.bytes,
            "compiler": {"flops": work.compiler_flops, "bytes": work.compiler_bytes, "our_flops_loops_once": work.once},
            "loops": [loop._asdict() for loop in work.loops],
        }
    for a, b in combinations(works, 2):
        measured, foretold = times.ratio(a, b), predicted[a].step / predicted[b].step
        clear = measured.min > 1 or measured.max < 1
        agrees = (measured.median > 1) == (foretold > 1)
        pairs.append([a, b, {"predicted": foretold, "measured": asdict(measured), "clear": clear, "agrees": agrees}])
    return {
        "rates": {
            "flops": chip.flops,
            "bandwidth": chip.bandwidth,
            "bandwidth_to_new_memory": times.per_second("copy to new memory", COPIED_BYTES).median,
        },
        "variants": variants,
        "pairs": pairs,
        "tau": {"all": tau(variants), "kernels": tau({k: v for k, v in variants.items() if k.startswith("scale")})},
    }


def tau(variants: dict[str, Any]) -> float:
    """Kendall's tau of the predicted and the measured times: 1 for one order, -1 for the opposite."""
    sides = [[v["predicted_ms"] for v in variants.values()], [v["ms"]["median"] for v in variants.values()]]
    return float(kendalltau(*sides).statistic)


def table(found: dict[str, Any]) -> str:
    """The variants in the predicted order, then the pairs that are measured the other way round."""
    lines = [f"{'':22}{'predicted':>12}{'measured (least to most), ms':>34}{'over predicted':>16}{'temporaries':>13}"]
    for name, row in sorted(found["variants"].items(), key=lambda item: item[1]["predicted_ms"]):
        ms = MedianRange(**row["ms"])
        spread = f"{ms.median:.1f} ({ms.min:.1f} to {ms.max:.1f})"
        over = row["measured_over_predicted"]
        cells = f"{row['predicted_ms']:12.1f}{spread:>34}{over:16.1f}{size(row['memory']['temp']):>13}"
        lines.append(f"{name:22}{cells}  {row['bound']}")
    clear = [pair for pair in found["pairs"] if pair[2]["clear"]]
    right = sum(pair[2]["agrees"] for pair in clear)
    lines.append(f"{right} of {len(clear)} pairs that differ alike in every round are in the predicted order; wrong:")
    for a, b, pair in clear:
        if not pair["agrees"]:
            lines.append(
                f"  {a} over {b}: predicted {pair['predicted']:.2f}, measured {pair['measured']['median']:.2f}"
            )
    rates = found["rates"]
    lines.append(f"Kendall's tau {found['tau']['all']:.2f}, of the kernels of scale {found['tau']['kernels']:.2f}; ")
    lines[-1] += f"product {rates['flops'] / 1e9:.0f} GFLOP/s, copy {rates['bandwidth'] / 1e9:.1f} GB/s, "
    lines[-1] += f"to new memory {rates['bandwidth_to_new_memory'] / 1e9:.1f}"
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("embed", 256), ("experts", 512), ("batch", 1024), ("k", 32)):
        parser.add_argument(f"--{name}", type=int, default=number, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=420, help="no further round after so long (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    words = parser.parse_args()
    shape, before = Shape(words.embed, words.experts, words.batch, k=words.k), load_average()
    variants = starts(shape)
    rows, use = make_batch(shape, variants["scale, tiles"][0].sae)
    batch, works, memory, programs = jnp.asarray(rows), {}, {}, rate_programs()
    for name, (start, features, k) in variants.items():
        programs[name] = program = ours.Training(start, batch)
        compiled, memory[name] = program.step.compiled, program.memory
        load = TileLoad(shape.batch * k, features)
        works[name] = work_of(compiled.as_text(), 1, load, compiled.cost_analysis())
    times = interleave(programs, words.rounds, words.seconds)
    found = compared(works, memory, times)
    print(table(found))
    about = {"shape": asdict(shape), "batch": use._asdict(), "rounds": times.rounds, "seconds": times.seconds}
    loads = {"load_before": before, "load_after": load_average()}
    write(about | found | loads | environment(), words.json)


if __name__ == "__main__":
    main()
