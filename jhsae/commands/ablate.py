"""``jhsae ablate``: one run per changed slot and seed, from one base config; results in one JSONL and one table.

Every variant changes one axis of the base; the base itself is run too. Finished runs and evaluations are skipped, so
that an interrupted ablation continues where it stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen

from jhsae import config as cfg
from jhsae.commands import evaluate
from jhsae.commands.last_line import command, last_line
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.escaping import escaped
from jhsae.files.folders import local_folder, write_whole
from jhsae.files.lock import owned
from jhsae.ranges import Count, Seed, Words, ranged
from jhsae.training.config import Train
from jhsae.training.run import train
from jhsae.training.run_folder import check_owner

BASE = "base"


@ranged
@dataclass(frozen=True)
class Ablate:
    """What is varied."""

    out: Annotated[Words, "folder of the runs and their results.jsonl"]
    train: Annotated[Words, "the base config of jhsae train"]
    axes: Annotated[dict[str, dict[str, list[str]]], "axis -> variant -> overrides of the base"]
    seeds: Annotated[list[Seed], MinLen(1), "one run per variant and seed"]
    store: Annotated[Words, "held-out store on which every run is evaluated"]
    lm: Annotated[Words, "language model to splice into"]
    overrides: Annotated[list[str], "overrides of the base that every run shares"] = field(default_factory=list)
    rows: Annotated[Count | None, "held-out activations to use; null for all"] = None
    sequences: Annotated[Count, "held-out sequences for the cross-entropy"] = 64
    table: Annotated[list[str], "metrics that the table shows"] = field(
        default_factory=lambda: ["ev_r2", "ce_recovered", "l0", "dead"]
    )


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
        return _run(config, out)


def _run(config: Ablate, out: Path) -> Path:
    plan = [(variant, seed, _train_config(config, variant, seed)) for variant, seed in _grid(config)]
    for _, _, run_config in plan:
        check_owner(Path(run_config.out), run_config)  # every clash is found before anything is trained
    rows = []
    for variant, seed, run_config in plan:
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
    variants += [Variant(a, n, o) for a, choices in config.axes.items() for n, o in choices.items()]
    for variant in variants:
        for seed in config.seeds:
            yield variant, seed


def _train_config(config: Ablate, variant: Variant, seed: int) -> Train:
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
