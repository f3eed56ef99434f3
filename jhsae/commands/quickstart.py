"""``jhsae quickstart``: the whole pipeline on the embedded language model, from text to report.html.

harvest (two stores: train and held-out text) -> teach -> train the scale and geometry H-SAEs and a flat TopK SAE on
the same data -> evaluate each on the held-out store -> report. Finished steps are kept and reused.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from jhsae import config as cfg
from jhsae.commands import evaluate, harvest, report, teach, train
from jhsae.data import Store
from jhsae.errors import UserError
from jhsae.files.folders import local_folder
from jhsae.files.lock import owned
from jhsae.ranges import Count, Words, ranged
from jhsae.teacher.artifact import read_metadata


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
    """Runs every step and returns the path of report.html."""
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
    runs = [cfg.load(train.Train, cfg.find(path), [*shared, f"out={out / Path(path).stem}"]) for path in config.train]
    for run_config in runs:
        train.check_owner(Path(run_config.out), run_config)
    for name, harvest_config in harvests.items():
        _harvest(stores[name], harvest_config)
    _teach(teacher, teach_config)
    for run_config in runs:
        train.run(run_config)
    for run_config in runs:
        trust = [*cfg.packages(run_config)]  # it was trained from this very config
        evaluate.run(
            evaluate.Evaluate(
                run_config.out, str(stores["heldout"]), config.lm, sequences=config.sequences, trust=trust
            )
        )
    return report.run(
        report.Report(
            runs=[r.out for r in runs],
            out=str(out / "report.html"),
            title=config.title,
            teacher=str(teacher),
            notes=config.notes,
            commands=[f"jhsae quickstart out={config.out}"],
        )
    )


def _harvest(folder: Path, config: harvest.Harvest) -> None:
    if (folder / "manifest.json").exists():
        made_by = Store.open(folder).manifest.config_hash
        _same(folder, made_by, cfg.config_hash(config))
    else:
        harvest.run(config)


def _teach(folder: Path, config: teach.Teach) -> None:
    if (folder / "teacher.json").exists():
        provenance = read_metadata(folder)["provenance"]
        _same(folder, provenance.get("config_hash"), cfg.config_hash(config))
    else:
        teach.run(config)


def _same(folder: Path, made_by: Any, wanted: str) -> None:
    if made_by != wanted:
        raise UserError(f"{folder} was made by another config ({made_by}, wanted {wanted}); write another out=...")
    print(f"{folder} exists and is reused")
