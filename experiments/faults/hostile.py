"""Hostile files and configs: how many are read, refused with one sentence, or end otherwise.

    python experiments/faults/hostile.py [--files 2500] [--configs 2500] [--first 0] [--jobs 2]

The cases are those of tests/hostile, whose tests run the first few hundred. Here they run as the command line does,
without the type checks of the tests. Writes hostile.jsonl beside this file, one row per kind of file and outcome, every
fault with its case, and the table hostile.md. CPU, one device.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "hostile")]
BATCH = 250  # cases of one process, which makes its artifacts once


@dataclass(frozen=True)
class Cases:
    """The numbers of the cases, by which they can be run again."""

    files: int
    configs: int
    first: int
    seed: int


Task = tuple[str, int, int]  # files or configs, the first case, and the one behind the last


def child(task: Task, rows: Path) -> None:
    """Runs the cases of a task in this process, and appends a row for each when it is over."""
    from artifacts import quick
    from cases import Cases as Files
    from small_configs import Configs

    what, start, stop = task
    with quick(), tempfile.TemporaryDirectory() as made, rows.open("a") as file:
        cases = (Files if what == "files" else Configs)(Path(made).resolve())
        for number in range(start, stop):
            with tempfile.TemporaryDirectory() as place:
                case = cases.run(number, Path(place).resolve())
            word, detail, megabytes = case.outcome
            row = {"case": number, "kind": case.kind, "file": case.file, "change": case.change, "outcome": word}
            file.write(json.dumps(row | {"detail": detail, "megabytes": megabytes}) + "\n")
            file.flush()


def batch(task: Task) -> list[dict[str, Any]]:
    """The rows of a task. A case that ends its process is a row too, and the next process begins behind it."""
    what, start, stop = task
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder, "rows.jsonl"), Path(folder, "log")
        while start < stop:
            words = ["--child", what, str(start), str(stop), str(rows)]
            rows.write_text("")
            with log.open("w") as file:
                code = subprocess.run([sys.executable, __file__, *words], stdout=file, stderr=file).returncode
            found += [json.loads(row) for row in rows.read_text().splitlines()]
            if code == 0:
                break
            start = found[-1]["case"] + 1 if found and found[-1]["case"] >= start else start
            if "Traceback" in log.read_text(errors="replace").rpartition("\n\n")[2]:
                raise RuntimeError(log.read_text(errors="replace")[-3000:])
            detail = next(
                (line.strip() for line in log.read_text(errors="replace").splitlines() if "/jhsae/" in line), ""
            )
            ended = {"case": start, "kind": what, "file": "", "change": "", "outcome": "ended the process"}
            found.append(ended | {"detail": f"code {code}: {detail}", "megabytes": 0})
            start += 1
    return found


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
    words.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.child:
        child((given.child[0], int(given.child[1]), int(given.child[2])), Path(given.child[3]))
        return 0
    from cases import SEED

    from jhsae import config as cfg

    tasks = [
        (what, start, min(start + BATCH, given.first + count))
        for what, count in (("files", given.files), ("configs", given.configs))
        for start in range(given.first, given.first + count, BATCH)
    ]
    with ThreadPoolExecutor(given.jobs) as pool:
        found = [row for rows in pool.map(batch, tasks) for row in rows]
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
