"""``jhsae ablate``: one part swapped at a time; results in one JSONL, one table and, from poles, one HTML page.

From one base config (`train`) every variant changes one axis, and each run is evaluated by ``jhsae evaluate``. From
`poles` (`jhsae.commands.ablation`) there are flips, grids and random search, each arm at its own best learning rate and
with a matched budget, and paired differences with intervals. Finished runs and rows are skipped, so that an interrupted
ablation continues where it stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jhsae import config as cfg
from jhsae.commands import evaluate
from jhsae.commands.ablation.config import Ablate as Ablate
from jhsae.commands.ablation.config import as_value
from jhsae.commands.ablation.study import run_study
from jhsae.commands.ablation.work import forget_programs
from jhsae.commands.last_line import command, last_line
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.escaping import escaped
from jhsae.files.folders import local_folder, write_whole
from jhsae.files.lock import owned
from jhsae.training.config import Train
from jhsae.training.run import train
from jhsae.training.run_folder import check_owner

BASE = "base"


@dataclass(frozen=True)
class Variant:
    """One change of the base."""

    axis: str
    name: str
    overrides: list[str]

    @property
    def folder(self) -> str:
        """The name of its runs, without the seed."""
        return BASE if self.axis == BASE else f"{self.axis}-{self.name}"


def run(config: Ablate) -> Path:
    """Trains and evaluates every variant, writes results.jsonl and table.md, prints the table and what was made."""
    out = local_folder(config.out)
    with owned(out, "ablate"):
        return run_study(config, out) if config.poles else _run(config, out)


def _run(config: Ablate, out: Path) -> Path:
    assert config.store is not None  # which its config has checked
    plan = [(variant, seed, _train_config(config, variant, seed)) for variant, seed in _grid(config)]
    for _, _, run_config in plan:
        check_owner(Path(run_config.out), run_config)  # every clash is found before anything is trained
    rows: list[dict[str, Any]] = []
    for variant, seed, run_config in plan:
        if rows and rows[-1]["seed"] == config.seeds[-1]:  # another variant: another program
            forget_programs()
        folder = train(run_config)
        row = evaluate.run(
            evaluate.Evaluate(
                str(folder),
                config.store,
                config.lm,
                rows=config.rows,
                sequences=config.sequences,
                trust=[*cfg.packages(run_config)],
            )
        )
        rows.append({"axis": variant.axis, "variant": variant.name, "seed": seed, **row})
        write_whole(out / "results.jsonl", "".join(to_json(r) + "\n" for r in rows))
    text = table(rows, config.table)
    write_whole(out / "table.md", text)
    print(text)
    numbers = [f"{len(rows)} runs of {len({v.folder for v, *_ in plan})} variants", "results.jsonl", "table.md"]
    words = (f"runs=[{plan[0][2].out},...]", "teacher=null", f"out={out / 'report.html'}")
    print(last_line(out, numbers, command("jhsae", "report", "report.yaml", *words)))
    return out


def _grid(config: Ablate) -> Iterator[tuple[Variant, int]]:
    variants = [Variant(BASE, BASE, [])]
    variants += [Variant(a, n, as_value(o).set) for a, choices in config.axes.items() for n, o in choices.items()]
    for variant in variants:
        for seed in config.seeds:
            yield variant, seed


def _train_config(config: Ablate, variant: Variant, seed: int) -> Train:
    assert config.train is not None  # which its config has checked
    out = Path(config.out) / f"{variant.folder}-seed{seed}"
    overrides = [*config.overrides, *variant.overrides, f"seed={seed}", f"data.seed={seed}", f"out={out}"]
    try:
        return cfg.load(Train, cfg.find(config.train), overrides)
    except UserError as error:
        raise UserError(f"axes.{variant.axis}.{variant.name}: {error}") from error


def table(rows: list[dict[str, Any]], metrics: list[str]) -> str:
    """A Markdown table: mean over seeds, and in brackets the smallest and largest seed."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["axis"], row["variant"]), []).append(row["metrics"])
    lines = [
        "| axis | variant | seeds | " + " | ".join(map(escaped, metrics)) + " |",
        "|---" * (3 + len(metrics)) + "|",
    ]
    for (axis, variant), found in groups.items():
        cells = [_cell([m[name] for m in found if isinstance(m.get(name), int | float)]) for name in metrics]
        lines.append(f"| {escaped(axis)} | {escaped(variant)} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "n/a"
    return f"{np.mean(values):.4g} [{min(values):.4g}, {max(values):.4g}]"
