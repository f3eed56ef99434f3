"""The training step of `scale.yaml` of this checkout beside that of an earlier one, interleaved, on this machine.

    git worktree add before 4b4ae9c1624d
    python experiments/bench/two_commits.py before --json experiments/bench/two_commits.json

Each checkout has a process of its own, which compiles the step and then waits; the processes take turns, A B, B A, ...,
and only one computes at a time. The batch is the same. `--shape EMBED EXPERTS BATCH` may be given several times.
"""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SHAPES = [[256, 2048, 4096], [512, 4096, 2048]]
DEADLINE = 300.0  # seconds after which no further round starts


def worker(embed: int, experts: int, batch: int) -> None:
    """Runs one step for every line on standard input and prints its seconds; for the layouts of both commits."""
    import jax.numpy as jnp

    from jhsae.bench import ours

    try:
        from jhsae.bench.inputs import Build, Shape, random_rows

        start: tuple[Any, ...] = (ours.scale(Shape(embed, experts, batch), Build()),)
    except ModuleNotFoundError:  # before the package was divided into rooms
        from jhsae.bench.batch import random_rows  # type: ignore[import-not-found,no-redef]
        from jhsae.bench.shape import Build, Shape  # type: ignore[import-not-found,no-redef]

        start = ours.scale(Shape(embed, experts, batch), Build())
    step = ours.Training(*start, jnp.asarray(random_rows(batch, embed)))
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)


class Side:
    """The process of one checkout."""

    def __init__(self, checkout: Path, shape: list[int]):
        command = [sys.executable, str(HERE), "--worker", *map(str, shape)]
        env = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> str:
        """The next line of the process."""
        line = self.process.stdout.readline().strip() if self.process.stdout else ""
        if not line:
            raise SystemExit("a process ended without an answer; its message is above")
        return line

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.answer())


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(*map(int, sys.argv[2:]))
        return
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="checkout of the earlier commit")
    parser.add_argument("--shape", type=int, nargs=3, action="append", help="embed, experts, batch")
    parser.add_argument("--rounds", type=int, default=15, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    given = parser.parse_args()

    from jhsae.bench.measurement import Timings, environment, interleave, load_average, write

    found, loads = {}, [load_average()]
    for shape in given.shape or SHAPES:
        sides = {"before": Side(given.before, shape), "now": Side(HERE.parents[2], shape)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        interleave({name: _kept(side, seconds[name]) for name, side in sides.items()}, given.rounds, DEADLINE)
        times = Timings({name: own[1:] for name, own in seconds.items()})  # the first round is a warm-up
        ratio = times.ratio("now", "before")
        print(f"{shape}: now over before {ratio.median:.3f} ({ratio.min:.3f} to {ratio.max:.3f})", flush=True)
        shown = {name: asdict(times.milliseconds(name)) for name in sides}
        found[" x ".join(map(str, shape))] = {"ms": shown, "now_over_before": asdict(ratio), "seconds": times.seconds}
        for side in sides.values():
            side.process.communicate()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=given.before, check=True, capture_output=True, text=True
    ).stdout.strip()
    loads.append(load_average())
    write({"before": commit, "shapes": found, "load": loads, "environment": environment()}, given.json)


def _kept(side: Side, seconds: list[float]) -> Any:
    return lambda: seconds.append(side.step())


if __name__ == "__main__":
    main()
