"""``jhsae train``: one loop for every SAE, from an activation store to a run folder (`jhsae.training.run`)."""

from jhsae.files.folders import Folder
from jhsae.parallel.distributed import is_main
from jhsae.training.config import Train as Train
from jhsae.training.run import train
from jhsae.training.run_folder import summary


def run(config: Train) -> Folder:
    """Trains, or resumes, prints what was made and returns the run folder. Raises what `train` does."""
    folder = train(config)
    if is_main():
        print(f"{summary(folder, config)}; next: jhsae evaluate run={folder} store=STORE lm=MODEL", flush=True)
    return folder
