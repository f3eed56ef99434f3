"""Hostile files and configs: how many are read, refused with one sentence, or end otherwise.

    python experiments/faults/hostile.py [--files 2500] [--configs 2500] [--first 0] [--jobs 2]

The cases are those of tests/hostile, whose tests run the first few hundred. Here they run as the command line does,
without the type checks of the tests. Writes hostile.jsonl beside this file, one row per kind of file and outcome, every
fault with its case, and the table hostile.md. CPU, one device.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "hostile")]
BATCH = 50  # cases of one task: a worker makes its artifacts once
MADE: dict[str, Any] = {}


@dataclass(frozen=True)
class Cases:
    """The numbers of the cases, by which they can be run again."""

    files: int
    configs: int
    first: int
    seed: int


Task = tuple[str, int, int]  # files or configs, the first case, and the one behind the last


def batch(task: Task) -> list[dict[str, Any]]:
    """The outcomes of a few cases, in this process."""
    from cases import Cases as Files
    from small_configs import Configs

    what, start, stop = task
    if what not in MADE:
        MADE[what] = (Files if what == "files" else Configs)(Path(tempfile.mkdtemp(prefix="made")))
    rows = []
    for number in range(start, stop):
        with tempfile.TemporaryDirectory() as place:
            case = MADE[what].run(number, Path(place).resolve())
        word, detail, megabytes = case.outcome
        row = {"case": number, "kind": case.kind, "file": case.file, "change": case.change, "outcome": word}
        rows.append(row | {"detail": detail, "megabytes": megabytes})
    return rows


def run_all(tasks: list[Task], jobs: int) -> tuple[list[dict[str, Any]], list[Task]]:
    """The rows of the tasks that came back, and the tasks that did not."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(batch, task): task for task in tasks}
        wait(running)
    ended = list(running.items())
    whole = [future.result() for future, _ in ended if future.exception() is None]
    broken = [task for future, task in ended if isinstance(future.exception(), BrokenProcessPool)]
    if len(whole) + len(broken) < len(ended):
        raise RuntimeError([future.exception() for future, _ in ended])
    return [row for rows in whole for row in rows], broken


def table(found: list[dict[str, Any]]) -> str:
    """Counts of outcomes by kind."""
    words = ["right", "sentence", *sorted({row["outcome"] for row in found} - {"right", "sentence"})]
    counts = Counter((row["kind"], row["outcome"]) for row in found)
    lines = [f"| what was changed | cases | {' | '.join(words)} | MiB at most |", "|---" * (len(words) + 3) + "|"]
    for kind in dict.fromkeys(row["kind"] for row in found):
        own = [row for row in found if row["kind"] == kind]
        cells = [str(counts[kind, word]) for word in words]
        lines.append(f"| {kind} | {len(own)} | {' | '.join(cells)} | {max(row['megabytes'] for row in own)} |")
    total = [str(sum(row["outcome"] == word for row in found)) for word in words]
    most = max(row["megabytes"] for row in found)
    return "\n".join([*lines, f"| all | {len(found)} | {' | '.join(total)} | {most} |"]) + "\n"


def main() -> int:
    """Runs everything; the exit code is 1 where a case ended otherwise than right or with a sentence."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--files", type=int, default=2500, help="cases of changed files")
    words.add_argument("--configs", type=int, default=2500, help="cases of changed training configs")
    words.add_argument("--first", type=int, default=0, help="number of the first case")
    words.add_argument("--jobs", type=int, default=2, help="processes")
    words.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the results")
    given = words.parse_args()
    from cases import SEED

    from jhsae import config as cfg

    tasks = [
        (what, start, min(start + BATCH, given.first + count))
        for what, count in (("files", given.files), ("configs", given.configs))
        for start in range(given.first, given.first + count, BATCH)
    ]
    found, broken = run_all(tasks, given.jobs)
    singles = [(what, number, number + 1) for what, start, stop in broken for number in range(start, stop)]
    for task in singles:  # one of these ended its process, and the others with it
        rows, dead = run_all([task], 1)
        found += rows or [{"case": task[1], "kind": task[0], "outcome": "ended the process", "megabytes": 0}] * len(
            dead
        )
    config = Cases(given.files, given.configs, given.first, SEED)
    about = asdict(config) | {"config_hash": cfg.config_hash(config)}
    about |= {key: cfg.provenance()[key] for key in ("commit", "versions")}
    counts = Counter((row["kind"], row["outcome"]) for row in found)
    rows = [{"kind": kind, "outcome": word, "cases": count} | about for (kind, word), count in sorted(counts.items())]
    faults = [row for row in found if row["outcome"] not in ("right", "sentence")]
    (given.out / "hostile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + faults))
    head = f"Commit {about['commit']}, config {about['config_hash']}: seed {SEED}, from case {given.first} on."
    (given.out / "hostile.md").write_text(f"{head}\n\n{table(found)}")
    print(table(found))
    for row in faults:
        print(" | ".join(str(row.get(key)) for key in ("case", "kind", "file", "change", "outcome", "detail")))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
