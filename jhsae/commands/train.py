"""``jhsae train``: one loop for every SAE, from an activation store to a run folder (`jhsae.training.run`).

Several configs are several runs, trained together (`jhsae.training.many`).
"""

from collections.abc import Sequence
from pathlib import Path

from jhsae.commands.last_line import command, with_next
from jhsae.config import published
from jhsae.files.folders import Folder
from jhsae.parallel.distributed import is_main
from jhsae.training.config import Train as Train
from jhsae.training.many import train_many
from jhsae.training.many_config import load_many
from jhsae.training.run import train
from jhsae.training.run_folder import summary


def run(config: Train) -> Folder:
    """Trains, or resumes, prints what was made and returns the run folder. Raises what `train` does."""
    folder = train(config)
    if is_main():
        print(with_next(summary(folder, config), _following(folder, config)), flush=True)
    return folder


def run_many(paths: Sequence[Path], overrides: Sequence[str]) -> list[Folder]:
    """Trains, or resumes, the runs of several configs; prints what was made. Raises what `train_many` does."""
    configs = load_many(paths, overrides)
    folders = train_many(configs)
    if is_main():
        lines = [summary(folder, config) for folder, config in zip(folders, configs, strict=True)]
        print("\n".join([*lines[:-1], with_next(lines[-1], _following(folders[-1], configs[-1]))]), flush=True)
    return folders


def _following(folder: Folder, config: Train) -> str:
    """The command that measures a run."""
    held_out = [f"truth={world}"] if (world := _world(config)) else ["store=HELD_OUT_STORE", "lm=LANGUAGE_MODEL"]
    return command("jhsae", "evaluate", f"run={folder}", *held_out)


def _world(config: Train) -> str | None:
    """The folder of the world that is trained on, where it is one."""
    live = config.data.live or {}
    return live.get("path") if published(live.get("_target_", "")) == "jhsae.worlds.WorldActivations" else None
