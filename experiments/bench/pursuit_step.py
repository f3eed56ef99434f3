"""The training step of a tree that is found by pursuit beside that of `scale.yaml`, interleaved, on this machine.

    python experiments/bench/pursuit_step.py --children 0 --json experiments/bench/pursuit_step.json

`scale` has 32 experts per token, as its config says. A tree has the parts of `recommended.yaml`, as many roots as
`scale` has experts, and exactly k rows per token, so that the work does not depend on how far a threshold has come. It
has about as many parameters, or `--children` slots below each root; 0 is a flat pursuit. What it searches with is in
the first column: which roots compete, `growth` (how far apart the sweeps between picks are), and `sweeps` at the end.
"""

from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jhsae.bench import ours
from jhsae.bench.inputs import Build, Shape, make_batch
from jhsae.bench.measurement import environment, interleave, load_average, write
from jhsae.evals.fidelity import parameters

ALL = "{_target_: jhsae.sae.AllRows}"
BY_ROUND = "{{_target_: jhsae.sae.Screened, rounds: {rounds}, candidates: {candidates}, children: every round}}"
SEARCHES: dict[str, dict[str, Any]] = {
    "all roots": {"candidates": ALL},
    **{f"{rounds} x {n}": {"candidates": f"{{_target_: jhsae.sae.Screened, rounds: {rounds}, candidates: {n}}}"}
       for rounds, n in ((3, 32), (3, 64), (6, 16))},
    "6 x 16, by round": {"candidates": BY_ROUND.format(rounds=6, candidates=16)},
    "3 x k, by round": {"candidates": BY_ROUND, "rounds": 3, "times_k": 1.0},
    "2 x 1.25 k, by round": {"candidates": BY_ROUND, "rounds": 2, "times_k": 1.25},
    "all roots, growth 1.5": {"candidates": ALL, "growth": 1.5},
    "all roots, growth 2, 1 sweep": {"candidates": ALL, "growth": 2.0, "sweeps": 1},
    "3 x 32, growth 2, 1 sweep": {
        "candidates": "{_target_: jhsae.sae.Screened, rounds: 3, candidates: 32}", "growth": 2.0, "sweeps": 1,
    },
}  # fmt: skip


def search(name: str, k: int) -> dict[str, Any]:
    """The arguments of `ours.tree` of one of `SEARCHES`; candidates may be counted in rows per token."""
    parts = dict(SEARCHES[name])
    if "times_k" in parts:
        candidates = round(k * parts.pop("times_k"))
        parts["candidates"] = parts["candidates"].format(rounds=parts.pop("rounds"), candidates=candidates)
    return parts


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("embed", 256), ("experts", 2048), ("batch", 4096)):
        parser.add_argument(f"--{name}", type=int, default=number, help="(%(default)s)")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 32], help="rows per token of the trees (16 32)")
    parser.add_argument("--children", type=int, help="slots below a root (as many parameters as scale)")
    parser.add_argument("--only", nargs="+", choices=SEARCHES, default=[*SEARCHES], help="these searches")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    words = parser.parse_args()
    shape, before = Shape(words.embed, words.experts, words.batch), load_average()
    scale = ours.scale(shape, Build())
    batch = jnp.asarray(make_batch(shape, scale.sae)[0])
    children = words.children
    if children is None:
        children = round(parameters(scale.sae) / (shape.experts * shape.embed)) - 1
    programs = {"scale": ours.Training(scale, batch)}
    for k in words.k:
        at_k = Shape(words.embed, words.experts, words.batch, k=k)
        programs |= {f"k {k}, {s}": ours.Training(ours.tree(at_k, children, **search(s, k)), batch) for s in words.only}
    times = interleave(programs, words.rounds, 60.0 * len(programs))
    memory, found = {name: program.memory for name, program in programs.items()}, {}
    print(f"{'':40}{'ms':>8}{'over scale (least to most)':>30}{'temporaries':>14}{'memory':>8}")
    for name in programs:
        ratio, ms = times.ratio(name, "scale"), times.milliseconds(name)
        temp, total = (getattr(memory[name], of) / getattr(memory["scale"], of) for of in ("temp", "total"))
        over = f"{ratio.median:.2f} ({ratio.min:.2f} to {ratio.max:.2f})"
        print(f"{name:40}{ms.median:8.0f}{over:>30}{temp:14.2f}{total:8.2f}")
        found[name] = {"ms": asdict(ms), "over_scale": asdict(ratio), "memory": memory[name].to_dict()}
    about = {"shape": {"embed": shape.embed, "experts": shape.experts, "batch": shape.batch}, "children": children}
    loads = {"load_before": before, "load_after": load_average()}
    write(
        about | {"rounds": times.rounds, "steps": found, "seconds": times.seconds} | loads | environment(), words.json
    )


if __name__ == "__main__":
    main()
