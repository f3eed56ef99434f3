"""Measures when a hierarchy pays: every arm on two layers of the embedded language model and on three known worlds.

    python experiments/hierarchy/study.py --results experiments/hierarchy/results.jsonl
    python experiments/hierarchy/table.py --write

Each row of the results is one run. A run that has a row is not run again, so the command may be stopped and goes on
where it was; started several times with the same --work and --results, the processes share the runs. `table.py` makes
the tables of README.md.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import arms
from jobs import EXTRAS, Job, Row, finals, wanted
from measure import done, settings
from settings import QUICK, REAL, TAUGHT, WORLD, Size

from jhsae import config as cfg
from jhsae.activations.config import Harvest
from jhsae.commands import world as world_verb
from jhsae.commands.ablation.work import WAIT, append_row, forget_programs, keep_programs
from jhsae.commands.harvest import harvest
from jhsae.commands.teach import Teach, teach
from jhsae.errors import UserError
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.lease import BusyError
from jhsae.files.lock import owned
from jhsae.worlds import WorldConfig

PARTS = ("real", "worlds", *EXTRAS)


def main() -> None:
    """Runs what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers: Callable[[str], list[int]] = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    parser.add_argument("--results", type=Path, required=True, help="results file; rows are appended")
    parser.add_argument("--work", type=Path, default=Path("runs/hierarchy"), help="folder of stores, worlds and runs")
    parser.add_argument("--stores", type=Path, help="folder with train-2, heldout-2, ...; harvested where not given")
    parser.add_argument("--only", nargs="+", choices=[*dict.fromkeys([*REAL, *WORLD])], help="these arms")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--layers", type=numbers, help="2 or 2,3")
    parser.add_argument("--l0", type=numbers, help="of the language model's arms: 16 or 16,8,24")
    parser.add_argument("--seeds", type=numbers)
    parser.add_argument("--worlds", nargs="+", help="names of worlds")
    parser.add_argument("--quick", action="store_true", help="a few steps of tiny arms: does it work?")
    given = parser.parse_args()
    size, results, provenance = QUICK if given.quick else Size(), given.results.absolute(), cfg.provenance()
    stores = None if given.stores is None else given.stores.absolute()
    work = given.work / "quick" if given.quick else given.work
    work.mkdir(parents=True, exist_ok=True)
    results.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(work)  # paths in configs, and so their hashes, are the same wherever the study runs
    keep_programs(Path())
    worlds = tuple(name for name in size.worlds if "worlds" in given.part and name in (given.worlds or size.worlds))
    prepare(size, given.part, worlds, stores, given.only)
    found = [job for job in finals(replace(size, worlds=worlds), arms.world_l0) if _asked(job, given)]
    work_on(found, size, results, provenance)


def work_on(found: list[Job], size: Size, results: Path, provenance: dict[str, Any]) -> None:
    """Runs until nothing is wanted; waits for what other processes run."""
    while True:
        row_of = partial(current, rows=read_rows(results), size=size)
        jobs = [*wanted(iter(found), size, row_of)]
        if not jobs:
            return
        if not any(taken(job, size, results, provenance) for job in jobs):
            time.sleep(WAIT)


def taken(job: Job, size: Size, results: Path, provenance: dict[str, Any]) -> bool:
    """Runs one job and appends its row; False where another process runs it."""
    out = settings(job, size).out
    try:
        with owned(out if job.part not in EXTRAS else f"{out}-{job.part}", "study"):
            if current(job, rows=read_rows(results), size=size) is None:  # not made since
                row = done(job, size, provenance)
                append_row(results, to_json(row))
                print(said(row), flush=True)
                forget_programs()
    except BusyError:
        return False
    return True


def prepare(size: Size, parts: list[str], worlds: tuple[str, ...], stores: Path | None, only: list[str] | None) -> None:
    """Makes what the runs read and is not there: stores, the teacher of each layer, worlds."""
    if set(parts) != {"worlds"}:
        if stores is None:
            layers = f"lm.layer={list(size.layers)}"
            for kind, name, rows in (("train", "embedded", size.rows), ("heldout", "embedded_heldout", size.heldout)):
                words = [layers, f"out=stores/{kind}-{{layer}}", f"rows={rows}"]
                _made(partial(harvest, cfg.load(Harvest, cfg.find(f"harvest/{name}.yaml"), words)))
        else:
            _linked(Path("stores"), stores)
        for layer in size.layers if {*TAUGHT} & {*(only or size.arms or REAL)} else ():
            words = [f"lm.layer={layer}", f"out=teacher-{layer}"]
            _made(partial(teach, cfg.load(Teach, cfg.find("quickstart/teach.yaml"), words)))
    for name in worlds:
        config = cfg.load(WorldConfig, cfg.find(f"worlds/{name}.yaml"), [f"out=worlds/{name}"])
        _made(partial(world_verb.make, config))


def _made(make: Callable[[], Any]) -> None:
    """Makes something, or waits until another process has made it."""
    while True:
        try:
            make()
            return
        except BusyError:
            time.sleep(WAIT)


def _linked(link: Path, target: Path) -> None:
    if not link.is_symlink() and not link.exists():
        link.symlink_to(target)
    if link.resolve() != target.resolve():
        raise UserError(f"{link.absolute()} is another folder than {target}; write another --work, or no --stores")


def _asked(job: Job, given: argparse.Namespace) -> bool:
    """Whether a run is among those of the command line."""
    real = job.part != "worlds"
    return (
        job.part in given.part
        and (given.only is None or job.arm in given.only)
        and (given.seeds is None or job.seed in given.seeds)
        and (not real or given.layers is None or int(job.place) in given.layers)
        and (not real or given.l0 is None or job.l0 in given.l0)
    )


def current(job: Job, *, rows: dict[Job, Row], size: Size) -> Row | None:
    """The row of a job, where its config is still the same."""
    row = rows.get(job)
    return row if row is not None and row["config_hash"] == cfg.config_hash(settings(job, size)) else None


def read_rows(file: Path) -> dict[Job, Row]:
    """The rows of a results file; of several about one job the last."""
    rows = read_lines(file) if file.exists() else []
    return {Job(*(row[name] for name in Job._fields)): row for row in rows}


def said(row: Row) -> str:
    """A row in one line."""
    names = ("ev_r2", "ce_recovered", "l0", "dead", "sibling_cosine", "cosine_latents", "f1_parents")
    metrics = ", ".join(f"{name} {value:.4g}" for name in names if (value := row["metrics"].get(name)) is not None)
    about = f"{row['part']} {row['place']} {row['arm']} L0 {row['l0']} rate {row['rate']:g} seed {row['seed']}"
    about += f" steps x {row['times']}" if row["times"] > 1 else ""
    return f"{about}: {metrics or row.get('diverged', 'no numbers')}; {row['seconds']:.0f} s"


if __name__ == "__main__":
    main()
