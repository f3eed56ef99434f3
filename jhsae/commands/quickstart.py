"""``jhsae quickstart``: the whole pipeline on the embedded language model, from text to report.html.

harvest (two stores: train and held-out text) -> teach -> train the scale and geometry H-SAEs and a flat TopK SAE on
the same data -> evaluate each on the held-out store -> report. Finished steps are reused.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from jhsae import config as cfg
from jhsae.commands import evaluate, harvest, report, teach
from jhsae.commands.last_line import command, last_line
from jhsae.files.folders import local_folder
from jhsae.files.lock import owned
from jhsae.ranges import Count, Words, ranged
from jhsae.training.config import Train
from jhsae.training.run import train
from jhsae.training.run_folder import check_owner, summary


@ranged
@dataclass(frozen=True)
class Quickstart:
    """Which configs are run one after the other."""

    out: Annotated[Words, "folder of everything that is made"]
    harvest: Annotated[Words, "config of jhsae harvest for the training store"]
    heldout: Annotated[Words, "config of jhsae harvest for the held-out store"]
    teach: Annotated[Words, "config of jhsae teach"]
    train: Annotated[list[Words], MinLen(1), "configs of jhsae train, same data, steps and total L0"]
    lm: Annotated[Words, "language model that the SAEs are spliced into"]
    sequences: Annotated[Count, "held-out sequences for the cross-entropy"] = 128
    overrides: Annotated[list[str], "overrides of every train config"] = field(default_factory=list)
    title: Annotated[str, "title of the report"] = "jhsae quickstart"
    notes: Annotated[list[str], "paragraphs under the title of the report"] = field(default_factory=list)


def run(config: Quickstart) -> Path:
    """Runs every step, prints what was made and returns the path of report.html."""
    out = local_folder(config.out)
    with owned(out, "quickstart"):
        return _run(config, out)


def _run(config: Quickstart, out: Path) -> Path:
    stores = {name: out / "store" / name for name in ("train", "heldout")}
    harvests = {
        name: cfg.load(harvest.Harvest, cfg.find(path), [f"out={stores[name]}"])
        for name, path in (("train", config.harvest), ("heldout", config.heldout))
    }
    teacher = out / "teacher"
    teach_config = cfg.load(teach.Teach, cfg.find(config.teach), [f"out={teacher}"])
    shared = [*config.overrides, f"data.store={stores['train']}", f"teacher={teacher}"]
    runs = [cfg.load(Train, cfg.find(path), [*shared, f"out={out / Path(path).stem}"]) for path in config.train]
    for run_config in runs:
        check_owner(Path(run_config.out), run_config)
    for harvest_config in harvests.values():
        print(harvest.summary(harvest.harvest(harvest_config)), flush=True)
    print(teach.about(teach.teach(teach_config)), flush=True)
    for run_config in runs:
        print(summary(train(run_config), run_config), flush=True)
    rows = [_evaluated(config, run_config, stores["heldout"]) for run_config in runs]
    page = report.run(
        report.Report(
            runs=[r.out for r in runs],
            out=str(out / "report.html"),
            title=config.title,
            teacher=str(teacher),
            notes=config.notes,
            commands=[f"jhsae quickstart out={config.out}"],
        )
    )
    explained = [(row["name"], row["metrics"]["ev_r2"]) for row in rows]
    numbers = [f"{name} {'undefined' if ev is None else f'{ev:.4f}'}" for name, ev in explained]
    words = (f"run={runs[0].out}", f"store={stores['heldout']}", f"lm={config.lm}", f"out={out / 'features.html'}")
    numbers[0] = f"held-out explained variance {numbers[0]}"
    print(last_line(page, numbers, f"open it in a browser, or write {command('jhsae', 'browse', *words)}"))
    return page


def _evaluated(config: Quickstart, run_config: Train, store: Path) -> dict[str, Any]:
    """The row of results of one run."""
    trust = [*cfg.packages(run_config)]  # it was trained from this very config
    return evaluate.run(
        evaluate.Evaluate(run_config.out, str(store), config.lm, sequences=config.sequences, trust=trust)
    )
