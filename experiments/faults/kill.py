"""Commands, each killed with SIGKILL at a random moment and started again: compared with uninterrupted ones.

    python experiments/faults/kill.py [--kills 60] [--seed 0] [--jobs 2] [--only WORDS]

A kill of `train` comes when a random row has been logged, plus up to 0.3 seconds: saves are so frequent that many a
kill falls into one. A kill of another verb comes at a random moment after its first file appeared. Writes kills.jsonl
beside this file, one row per kill, and the table of README.md. CPU, one device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from kill_cases import EVERY, STEPS, Case, cases, make_inputs, result  # noqa: E402

START = "import sys, jhsae.__main__ as m; sys.exit(m.main(sys.argv[1:]))"
HEAD, END = "<!-- table -->\n", "<!-- end of table -->\n"
POLL = 0.005


def start(folder: Path, words: tuple[str, ...], cache: Path) -> subprocess.Popen:
    """`jhsae` on one CPU device in `folder`; what was compiled once is not compiled again."""
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | compiled
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        command = [sys.executable, "-c", START, *words]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def finish(folder: Path, words: tuple[str, ...], cache: Path) -> None:
    """Runs to the end. `RuntimeError` with the log when the command fails."""
    if start(folder, words, cache).wait() != 0:
        raise RuntimeError(f"{words}: {(folder.parent / f'{folder.name}.log').read_text()[-3000:]}")


def files(folder: Path) -> int:
    """How many files there are."""
    return sum(len(names) for _, _, names in os.walk(folder))


def rows(run: Path) -> int:
    """How many complete lines metrics.jsonl has."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Moment:
    """When a command is killed: after `target` rows of metrics, or after its first file, and then `delay` seconds."""

    def __init__(self, case: Case, folder: Path, rng: np.random.Generator, seconds: float):
        self._training = case.words[0] == "train"
        self._target = int(rng.integers(0, STEPS))
        self._delay = float(rng.uniform(0, 0.3 if self._training else seconds))
        self._folder, self._before = folder, files(folder)

    def come(self) -> bool:
        """True once the command has come so far; then it sleeps for the delay."""
        if self._training:
            there = rows(self._folder / "out") >= self._target if self._target else files(self._folder) > self._before
        else:
            there = files(self._folder) > self._before
        if there:
            time.sleep(self._delay)
        return there


def whole(case: Case, folder: Path, cache: Path) -> tuple[dict[str, str], float]:
    """The result of an uninterrupted command, and the seconds from its first file to its end."""
    folder.mkdir()
    case.prepare(folder)
    finish(folder, case.words, cache)  # compiles
    again = folder.with_name(f"{folder.name}-timed")
    again.mkdir()
    case.prepare(again)
    before, process, first = files(again), start(again, case.words, cache), 0.0
    while process.poll() is None:
        if not first and files(again) > before:
            first = time.perf_counter()
        time.sleep(POLL)
    expected, found = (result(place / case.out) for place in (folder, again))
    if found != expected:
        names = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
        raise RuntimeError(f"{case.name}: two uninterrupted runs differ in {', '.join(names)}")
    return expected, time.perf_counter() - first


def one(case: Case, folder: Path, rng: np.random.Generator, expected: dict[str, str], seconds: float, cache: Path):
    """One command: killed, looked at, started again, compared."""
    folder.mkdir()
    case.prepare(folder)
    moment, process = Moment(case, folder, rng, seconds), start(folder, case.words, cache)
    while process.poll() is None and not moment.come():
        time.sleep(POLL)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    out = folder / case.out
    checkpoints = [f.name for f in (out / "checkpoints").glob("*")]
    logged, saved = rows(out), max((int(name) for name in checkpoints if name.isdecimal()), default=0)
    saving = any("tmp" in name for name in checkpoints) or any(folder.rglob("*.partial"))
    complete = (
        result(out) == expected
    )  # killed on its way out: verbs that overwrite nothing would refuse to start again
    if not complete:
        finish(folder, case.words, cache)
    found = result(out)
    left = [p.name for p in folder.rglob("*") if p.name.endswith(".partial") or "orbax-checkpoint-tmp" in p.name]
    return {
        "case": case.name,
        "killed": killed,
        "logged": logged,
        "lost": logged - saved if case.words[0] == "train" else None,
        "during_save": saving,
        "complete_before": complete,
        "equal": found == expected,
        "differ": sorted(n for n in {**found, **expected} if found.get(n) != expected.get(n)),
        "leftovers": left,
    }


def table(found: list[dict]) -> str:
    """The results in words and as a table."""
    by_case = defaultdict(list)
    for row in found:
        by_case[row["case"]].append(row)
    killed, equal = (sum(row[key] for row in found) for key in ("killed", "equal"))
    late = sum(row["killed"] and row["complete_before"] for row in found)
    lines = [
        f"{killed} of {len(found)} commands were killed before they ended, {late} of these when their files were "
        f"complete; the other killed commands were restarted. {equal} of {len(found)} ended with the files of "
        f"the uninterrupted command, byte for byte. `train`: {STEPS} steps or more, a checkpoint every {EVERY}.",
        "",
        "| command | kills | with something half-written | most steps done again | equal at the end |",
        "|---|---|---|---|---|",
    ]
    for name, some in by_case.items():
        lost = max((row["lost"] for row in some if row["lost"] is not None), default=None)
        half, same = (sum(row[key] for row in some) for key in ("during_save", "equal"))
        lines.append(f"| {name} | {len(some)} | {half} | {'-' if lost is None else lost} | {same} of {len(some)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs everything; the exit code is 1 when a result differs or something half-written is left."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--kills", type=int, default=60)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--jobs", type=int, default=2, help="commands at a time")
    words.add_argument("--only", default="", help="cases whose name holds these words; nothing is written then")
    given = words.parse_args()
    from jhsae import config as cfg

    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(given.jobs) as pool:
        folder, cache = Path(name), Path(name) / "compiled"
        shared = folder / "shared"
        shared.mkdir()
        make_inputs(shared, lambda where, command: finish(where, command, cache))
        chosen = [case for case in cases(shared) if given.only in case.name]
        expected = list(pool.map(lambda i: whole(chosen[i], folder / f"whole{i}", cache), range(len(chosen))))

        def kill(number: int) -> dict:
            i = number % len(chosen)
            rng = np.random.default_rng([given.seed, number])
            row = one(chosen[i], folder / f"kill{number}", rng, *expected[i], cache)
            print(json.dumps(row), flush=True)
            return row

        found = list(pool.map(kill, range(given.kills)))
    found.sort(key=lambda row: [case.name for case in chosen].index(row["case"]))
    print(table(found))
    if not given.only:
        about = cfg.provenance()
        about = {"seed": given.seed, "steps": STEPS, "every": EVERY} | {k: about[k] for k in ("commit", "versions")}
        here = Path(__file__).parent
        (here / "kills.jsonl").write_text("".join(json.dumps(row | about) + "\n" for row in found))
        before, _, rest = (here / "README.md").read_text().partition(HEAD)
        (here / "README.md").write_text(before + HEAD + table(found) + END + rest.partition(END)[2])
    return 0 if all(row["equal"] and not row["leftovers"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
