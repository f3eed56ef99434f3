"""``jhsae train``: one loop for every SAE, from an activation store to a run folder (`jhsae.training.run`)."""

from jhsae.commands.last_line import command, with_next
from jhsae.files.folders import Folder
from jhsae.parallel.distributed import is_main
from jhsae.training.config import Train as Train
from jhsae.training.run import train
from jhsae.training.run_folder import summary


def run(config: Train) -> Folder:
    """Trains, or resumes, prints what was made and returns the run folder. Raises what `train` does."""
    folder = train(config)
    if is_main():
        following = command("jhsae", "evaluate", f"run={folder}", "store=HELD_OUT_STORE", "lm=LANGUAGE_MODEL")
        print(with_next(summary(folder, config), following), flush=True)
    return folder
