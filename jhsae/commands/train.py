"""``jhsae train``: one loop for every SAE, from an activation store to a run folder (`jhsae.training.run`)."""

from jhsae.commands.last_line import command, with_next
from jhsae.config import published
from jhsae.data.manifest import read_manifest
from jhsae.data.places import has_tokens
from jhsae.files.folders import Folder
from jhsae.parallel.distributed import is_main
from jhsae.training.config import Train as Train
from jhsae.training.more import extended
from jhsae.training.run import train
from jhsae.training.run_folder import summary


def run(config: Train) -> Folder:
    """Trains, or resumes, prints what was made and returns the run folder. Raises what `train` does."""
    folder = train(config)
    if is_main():
        held_out = [f"truth={world}"] if (world := _world(config)) else ["store=HELD_OUT_STORE"]
        held_out += ["lm=LANGUAGE_MODEL"] if not world and _has_model(config) else []
        following = command("jhsae", "evaluate", f"run={folder}", *held_out)
        print(with_next(summary(folder, extended(config)), following), flush=True)
    return folder


def _has_model(config: Train) -> bool:
    """Whether a language model can read the text of what is trained on: an array in a store may have none."""
    return config.data.store is None or has_tokens(read_manifest(config.data.store).dataset)


def _world(config: Train) -> str | None:
    """The folder of the world that is trained on, where it is one."""
    live = config.data.live or {}
    return live.get("path") if published(live.get("_target_", "")) == "jhsae.worlds.WorldActivations" else None
