"""``jhsae bench run``: a whole run, from text to a trained SAE, timed as its two commands.

``jhsae harvest`` and ``jhsae train`` run one after the other, each in a process of its own: seconds, CPU seconds and
peak memory are those of the command, start-up, compilation and checkpoints included. `running` is the rate without
them: of a harvest between the first and the last record of its progress, which leaves out the writing of the last
group; of training the median over the rows of timing.jsonl but the first. `whole` counts the tokens trained on.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jhsae import config as cfg
from jhsae.bench.measurement import check_writable, environment, load_average, write
from jhsae.bench.table import run_table
from jhsae.data import Store
from jhsae.errors import UserError, sentence
from jhsae.files.folders import local_folder, make_folder
from jhsae.parallel.progress import NAME
from jhsae.training.config import Train
from jhsae.training.timing import input_share, timing

logger = logging.getLogger(__name__)
RECORD = re.compile(r"row (\d+)/\d+ ")
DEFAULT = "quickstart/scale.yaml"
WIDTHS = ("experts", "features")
HARVEST = "harvest."  # begins an override of the harvest
ERROR = "jhsae: error: "
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in which the system counts ru_maxrss


@dataclass(frozen=True)
class Phase:
    """One command: what it took, and its rates."""

    tokens: int
    seconds: float
    cpu_seconds: float
    peak_rss: int
    running_tokens_per_second: float | None
    input_share: float | None = None
    """Share of the training loop in which it waited for a batch."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the rates."""
        rates = {
            "tokens_per_second": self.tokens / self.seconds,
            "cpu_per_second": self.cpu_seconds / self.seconds,
        }
        return asdict(self) | rates


@dataclass(frozen=True)
class Usage:
    """Seconds and memory of a finished process, and when it said how many rows it had done."""

    seconds: float
    cpu_seconds: float
    peak_rss: int
    records: list[tuple[float, int]]

    @property
    def rows_per_second(self) -> float | None:
        """Between the first and the last record; None for fewer than two."""
        if len(self.records) < 2:
            return None
        (began, before), (ended, after) = self.records[0], self.records[-1]
        return (after - before) / (ended - began)


def command(words: Namespace) -> bool:
    """Runs the verb: measures, prints the table, writes the JSON."""
    check_writable(words.json)
    with _work(words.work) as folder:
        result = measure(words, folder)
    print(run_table(result))
    write(result, words.json)
    return True


@contextmanager
def _work(named: str | None) -> Iterator[Path]:
    """The folder of the store and the run: one that is named, and stays, or a temporary one."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="jhsae-bench-") as temporary:
            yield Path(temporary)
        return
    folder = local_folder(named, "--work")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--work is {folder}, which exists already; finished work takes no time, so name a new folder")
    make_folder(folder)
    yield folder


def measure(words: Namespace, folder: Path) -> dict[str, Any]:
    """Runs both commands in `folder` and returns plain data.

    Args:
        words: The flags of ``jhsae bench run``.
        folder: An empty folder.

    Raises:
        UserError: A config or an override is wrong, before anything runs; or a command failed.
    """
    before = load_average()
    named, overrides = _configs(words)
    cfg.load(Train, cfg.find(named), overrides["train"])  # what is wrong in it is said before the harvest
    harvested = _run("harvest", words.harvest, [*overrides["harvest"], f"out={folder / 'store-{layer}'}"])
    stores = (Store.open(str(path)) for path in folder.glob("store-*") if path.is_dir())
    store = min(stores, key=lambda store: store.manifest.layer)
    out = folder / "run"
    here = [f"data.store={store.path}", f"sae.embed={store.embed}", f"out={out}"]
    config = cfg.load(Train, cfg.find(named), [*overrides["train"], *here])
    trained = _run("train", named, [*overrides["train"], *here])
    steps = sum(stage.steps for stage in config.stages)
    phases = _phases(harvested, store.rows, trained, steps * config.data.batch, out)
    return {
        "verb": "bench run",
        "shape": {"embed": store.embed, **_sizes(config), "batch": config.data.batch, "steps": steps},
        "settings": {"train": named, "harvest": words.harvest, "lm": store.manifest.model, "overrides": overrides},
        "phases": {name: phase.to_dict() for name, phase in phases.items()},
        "load_before": before,
        "load_after": load_average(),
        **environment(),
    }


def _phases(harvested: Usage, rows: int, trained: Usage, tokens: int, run: Path) -> dict[str, Phase]:
    """Both commands, and the two together; `run` is the run folder."""
    harvest = Phase(rows, harvested.seconds, harvested.cpu_seconds, harvested.peak_rss, harvested.rows_per_second)
    rate = timing(run).get("tokens_per_second") or None  # 0 where there is one row alone
    train = Phase(tokens, trained.seconds, trained.cpu_seconds, trained.peak_rss, rate, input_share(run))
    seconds, cpu_seconds = harvest.seconds + train.seconds, harvest.cpu_seconds + train.cpu_seconds
    whole = Phase(tokens, seconds, cpu_seconds, max(harvest.peak_rss, train.peak_rss), None)
    return {"harvest": harvest, "train": train, "whole": whole}


def _configs(words: Namespace) -> tuple[str, dict[str, list[str]]]:
    """The config of training, and the overrides of both, those of the flags last."""
    given = words.words if words.words and "=" not in words.words[0] else [DEFAULT, *words.words]
    config, *loose = given
    harvest = [word.removeprefix(HARVEST) for word in loose if word.startswith(HARVEST)]
    train = [word for word in loose if not word.startswith(HARVEST)]
    flags = _train_flags(words, cfg.load(Train, cfg.find(config), train))
    return config, {"harvest": [*harvest, *_flag("rows", words.rows)], "train": [*train, *flags]}


def _train_flags(words: Namespace, config: Train) -> list[str]:
    stages = range(len(config.stages)) if words.steps is not None else ()
    flags = [f"stages.{i}.steps={words.steps}" for i in stages]
    flags += _flag("data.batch", words.batch)
    if words.width is not None:
        key = next((key for key in WIDTHS if key in config.sae), None)
        if key is None:
            raise UserError(
                f"--width sets sae.{' or sae.'.join(WIDTHS)}, and the SAE of this config has neither; write its own key"
            )
        flags += _flag(f"sae.{key}", words.width)
    return flags


def _flag(key: str, value: int | None) -> list[str]:
    return [] if value is None else [f"{key}={value}"]


def _sizes(config: Train) -> dict[str, int]:
    return {key: config.sae[key] for key in WIDTHS if key in config.sae}


def _run(verb: str, config: str, overrides: Sequence[str]) -> Usage:
    """Runs a verb in a process of its own until it ends.

    The system's peak of a child counts from the fork on; this process has imported no more than the child will.

    Raises:
        UserError: It failed; the message has its last line.
    """
    logger.info(f"jhsae {verb} {config} ...")
    words = [sys.executable, "-m", "jhsae", verb, config, *overrides]
    variables = os.environ | ({NAME: "0.001"} if verb == "harvest" else {})  # a record after every forward pass
    began, lines, records = time.perf_counter(), [""], list[tuple[float, int]]()
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=variables, text=True, errors="replace"
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                lines.append(line.strip() or lines[-1])
                if found := RECORD.match(line):
                    records.append((time.perf_counter(), int(found[1])))
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            raise
    seconds = time.perf_counter() - began
    if process.returncode:
        raise UserError(f"jhsae {verb} ended with code {process.returncode}: {sentence(lines[-1].removeprefix(ERROR))}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * RSS_UNIT, records)
