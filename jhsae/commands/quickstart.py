"""``jhsae quickstart``: the whole pipeline on the embedded language model, from text to report.html.

harvest (two stores: train and held-out text) -> teach -> train the scale and geometry H-SAEs, a flat TopK SAE and the
recommended H-SAE on the same data -> evaluate each on the held-out store -> feature browser of one of them -> report,
which links to it. Finished runs and evaluations are reused; the two pages are written again.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import MinLen

from jhsae import config as cfg
from jhsae.commands import browse, evaluate, harvest, report, teach
from jhsae.commands.last_line import last_line
from jhsae.errors import UserError
from jhsae.files.folders import local_folder
from jhsae.files.lock import owned
from jhsae.ranges import Count, Natural, Words, ranged
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
    browse: Annotated[Words | None, "config of jhsae browse for the page of features; null for no page"] = None
    browsed: Annotated[Words, "the run that it shows, by the name of its train config"] = "pursuit"
    coherent: Annotated[
        Natural, "experts shown because their tokens have most in common, beside evenly spaced ones"
    ] = 6
    sequences: Annotated[Count, "held-out sequences for the cross-entropy"] = 128
    overrides: Annotated[list[str], "overrides of every train config"] = field(default_factory=list)
    title: Annotated[str, "title of the report"] = "jhsae quickstart"
    notes: Annotated[list[str], "paragraphs under the title of the report"] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [Path(path).stem for path in self.train]
        if len({*names}) < len(names):
            raise UserError(f"train is {', '.join(self.train)}, but runs of one name share a folder; rename a config")
        if self.browse is not None and self.browsed not in names:
            raise UserError(f"browsed is {self.browsed}, expected one of {', '.join(names)}; or write browse=null")


def run(config: Quickstart) -> Path:
    """Runs every step, prints what was made and returns the path of report.html."""
    out = local_folder(config.out)
    with owned(out, "quickstart"):
        return _run(config, out)


class Plan(NamedTuple):
    """The configs of all steps, read and checked before the first of them runs."""

    harvests: list[harvest.Harvest]
    teach: teach.Teach
    runs: list[Train]
    browse: browse.Browse | None


def _plan(config: Quickstart, out: Path) -> Plan:
    """Every config with the folders of this quickstart. Raises `UserError` where another one's files would be lost."""
    harvests = [
        cfg.load(harvest.Harvest, cfg.find(path), [f"out={out / 'store' / name}"])
        for name, path in (("train", config.harvest), ("heldout", config.heldout))
    ]
    teacher = cfg.load(teach.Teach, cfg.find(config.teach), [f"out={out / 'teacher'}"])
    shared = [*config.overrides, f"data.store={harvests[0].out}", f"teacher={teacher.out}"]
    runs = {
        Path(path).stem: cfg.load(Train, cfg.find(path), [*shared, f"out={out / Path(path).stem}"])
        for path in config.train
    }
    for run_config in runs.values():
        check_owner(Path(run_config.out), run_config)
    if config.browse is None:
        return Plan(harvests, teacher, [*runs.values()], None)
    shown, page = runs[config.browsed], out / "features.html"
    words = [f"run={shown.out}", f"store={harvests[1].out}", f"lm={config.lm}", f"out={page}"]
    words += [f"trust=[{','.join(cfg.packages(shown))}]"]
    browse.claim(page, config.browsed)
    return Plan(harvests, teacher, [*runs.values()], cfg.load(browse.Browse, cfg.find(config.browse), words))


def _run(config: Quickstart, out: Path) -> Path:
    plan = _plan(config, out)
    for harvest_config in plan.harvests:
        print(harvest.summary(harvest.harvest(harvest_config)), flush=True)
    print(teach.about(teach.teach(plan.teach)), flush=True)
    for run_config in plan.runs:
        print(summary(train(run_config), run_config), flush=True)
    rows = [_evaluated(config, run_config, Path(plan.harvests[1].out)) for run_config in plan.runs]
    browsers = [] if plan.browse is None else [str(browse.run(plan.browse))]
    page = report.run(
        report.Report(
            runs=[r.out for r in plan.runs],
            out=str(out / "report.html"),
            title=config.title,
            teacher=plan.teach.out,
            notes=config.notes,
            commands=[f"jhsae quickstart out={config.out}"],
            browsers=browsers,
        )
    )
    explained = [(row["name"], row["metrics"]["ev_r2"]) for row in rows]
    numbers = [f"{name} {'undefined' if ev is None else f'{ev:.4f}'}" for name, ev in explained]
    numbers[0] = f"held-out explained variance {numbers[0]}"
    links = [f"; it links to the features of {config.browsed}, {browser}" for browser in browsers]
    print(last_line(page, numbers, f"open it in a browser{''.join(links)}"))
    return page


def _evaluated(config: Quickstart, run_config: Train, store: Path) -> dict[str, Any]:
    """The row of results of one run."""
    trust = [*cfg.packages(run_config)]  # it was trained from this very config
    return evaluate.run(
        evaluate.Evaluate(
            run_config.out, str(store), config.lm, sequences=config.sequences, coherent=config.coherent, trust=trust
        )
    )
