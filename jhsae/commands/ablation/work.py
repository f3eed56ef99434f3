"""Runs what the plan wants, in this process or in several: each takes the next run that has no row and no owner.

Rows go to one file, results.jsonl, under a lock. A run is owned by its folder's lock while it is trained and measured;
a killed process loses it, and the next one resumes it from its last checkpoint.

    python -m jhsae.commands.ablation.work FOLDER        (started by ``jhsae ablate`` for processes=N)
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jhsae import config as cfg
from jhsae.commands.ablation.arms import Arm
from jhsae.commands.ablation.config import Ablate
from jhsae.commands.ablation.heldout import HeldOut, held_out
from jhsae.commands.ablation.plan import DIVERGED, Rows, Run, Study
from jhsae.commands.ablation.sizes import tokens
from jhsae.errors import UserError, outcome
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import append_line, write_whole
from jhsae.files.forms import COUNT, NUMBER, TEXT, Each, check
from jhsae.files.lease import BusyError
from jhsae.files.lock import owned
from jhsae.training.loop import DivergedError
from jhsae.training.run import train

RESULTS, CONFIG, ARMS = "results.jsonl", "ablate.yaml", "arms.jsonl"
WAIT = 1.0  # seconds between two looks at what other processes have made
MEASURED = ("rows", "sequences", "validation", "lm")  # keys that decide what is measured
FORM = {
    "config_hash": TEXT,
    "kind": TEXT,
    "evaluation": TEXT,
    "metrics": {"ev_r2?": NUMBER, "l0?": NUMBER},
    "seconds": NUMBER,
    "seed": COUNT,
    "commit": TEXT,
    "units?": {"ev_r2?": Each(NUMBER)},
}


def keep_programs(out: Path) -> None:
    """Keeps what is compiled in a folder of the study: seeds share a program. A folder that the user set stays."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(out / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def forget_programs() -> None:
    """Drops compiled programs after a run: Linux ends a process that has 65,530 memory maps, and each takes some.

    A run of the same shape loads its programs from the folder of `keep_programs`.
    """
    jax.clear_caches()


def work(study: Study, parent: int | None = None) -> None:
    """Runs until no run is wanted; waits for those that other processes own.

    Args:
        study: what is wanted.
        parent: the process that started this one, whose end ends this one too, after its run.
    """
    config, rows_of = study.config, held_out(study.config)
    keep_programs(Path(config.out))
    evaluation = evaluation_hash(config, rows_of)
    while parent is None or os.getppid() == parent:
        rows = read_rows(config, evaluation)
        taken = _next(study, rows, rows_of, evaluation)
        if taken is None:
            return
        if not taken:
            time.sleep(WAIT)
            continue
        print(progress(study, read_rows(config, evaluation)), flush=True)
        forget_programs()


def _next(study: Study, rows: Rows, rows_of: HeldOut, evaluation: str) -> bool | None:
    """Runs the first run that is wanted and free; False where other processes own all of them, None without any."""
    found = None
    for _, step in study.steps(rows):
        for run in step.runs:
            if _taken(study, run, rows_of, evaluation):
                return True
            found = False
    return found


def _taken(study: Study, run: Run, rows_of: HeldOut, evaluation: str) -> bool:
    """Runs one run, unless another process owns it; True where there is a new row."""
    settings = study.settings(*run[:4])
    try:
        with owned(settings.out, "ablate"):
            if study.key(run) in read_rows(study.config, evaluation):
                return False  # made since
            row = _row(study, run, rows_of, evaluation)
            append_row(Path(study.config.out) / RESULTS, to_json(row))
            return True
    except BusyError:
        return False


def _row(study: Study, run: Run, rows_of: HeldOut, evaluation: str) -> dict[str, Any]:
    """Trains and measures."""
    start, settings = time.perf_counter(), study.settings(*run[:4])
    provenance = cfg.provenance()  # of the code that runs, whatever is edited meanwhile
    row: dict[str, Any] = {
        "pole": run.arm.pole,
        "picks": [list(pick) for pick in run.arm.picks],
        "arm": run.arm.name,
        "size": list(run.size),
        "rate": run.rate,
        "seed": run.seed,
        "kind": run.kind,
        "config_hash": cfg.config_hash(settings),
        "evaluation": evaluation,
        **provenance,
    }
    try:
        folder = Path(train(settings))
        measured = rows_of.measure(folder, run.kind, cfg.packages(settings))
    except DivergedError as error:
        measured = {"metrics": {}, DIVERGED: str(error)}
    measured["metrics"]["tokens"] = tokens(settings)
    return row | measured | {"seconds": time.perf_counter() - start}


def append_row(path: Path, line: str) -> None:
    """Appends a line when no other process does."""
    while True:
        try:
            with owned(path, "ablate"):
                append_line(path, line)
                return
        except BusyError:
            time.sleep(0.05)


def evaluation_hash(config: Ablate, rows_of: HeldOut) -> str:
    """12 digits over everything that decides what a row measures, apart from the run."""
    return cfg.config_hash({name: getattr(config, name) for name in MEASURED} | {"held_out": rows_of.identity()})


def read_rows(config: Ablate, evaluation: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of this evaluation, by config hash and kind; those of others stay in the file, unread."""
    path = Path(config.out) / RESULTS
    found = {}
    for number, row in enumerate(read_lines(path) if path.exists() else [], start=1):
        check(row, FORM, f"{path}, row {number}")
        if row["evaluation"] == evaluation:
            found[row["config_hash"], row["kind"]] = row
    return found


def progress(study: Study, rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    """``ablate: 12 of about 96 runs, 31 s each, about 44 min left``."""
    left = sum(step.left for _, step in study.steps(rows))
    each = sum(row["seconds"] for row in rows.values()) / max(len(rows), 1)
    minutes = left * each / study.config.processes / 60
    about = f"about {minutes:.0f} min left" if minutes >= 1 else f"about {60 * minutes:.0f} s left"
    return f"ablate: {len(rows)} of about {len(rows) + left} runs, {each:.0f} s each, {about}"


def work_together(study: Study) -> None:
    """Starts as many processes as the config says, and waits for them.

    Raises:
        UserError: one of them ended with an error, which it has printed.
    """
    out = Path(study.config.out)
    cfg.write(study.config, out / CONFIG)
    write_whole(out / ARMS, "".join(to_json({"pole": arm.pole, "picks": arm.picks}) + "\n" for arm in study.arms))
    command = [sys.executable, "-P", "-m", __spec__.name, str(out), str(os.getpid())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    started = [subprocess.Popen(command, env=environment) for _ in range(study.config.processes)]
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()  # saves its state
    if wrong := [code for code in codes if code]:
        raise UserError(f"{len(wrong)} of {len(codes)} processes ended with code {wrong[0]}; see the message above")


def main(arguments: list[str]) -> int:
    """One of several processes."""
    try:
        config = cfg.load(Ablate, Path(arguments[0]) / CONFIG)
        arms = [
            Arm(row["pole"], tuple((axis, name) for axis, name in row["picks"]))
            for row in read_lines(Path(arguments[0]) / ARMS)
        ]
        work(Study(config, arms), int(arguments[1]))
    except Exception as error:
        if (found := outcome(error)) is None:
            raise
        print(f"ablate: {found[0]}", file=sys.stderr, flush=True)
        return found[1]
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
