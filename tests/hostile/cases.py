"""Cases of hostile files: case `i` changes one file of an artifact of kind ``i % kinds`` and opens its door."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from artifacts import KINDS
from mutations import mutated_file, pick, sealed_again
from outcomes import Outcome, judged

SEED = 11


class Case(NamedTuple):
    """A case that was run: what was read, which file was changed in what way, and the outcome."""

    kind: str
    file: str
    change: str
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}: {self.change}: {self.outcome.word}: {self.outcome.detail}"


class Cases:
    """Makes every artifact once, when it is first needed, in the folder `made`."""

    def __init__(self, made: Path):
        self._made = made

    def artifact(self, kind: str) -> Path:
        """The folder of an artifact as it is right."""
        folder = self._made / kind.replace(" ", "_")
        if not folder.exists():
            folder.mkdir(parents=True)
            with inside(folder):
                KINDS[kind].make()
        return folder

    def run(self, number: int, place: Path, kind: str | None = None) -> Case:
        """Case `number`, in the empty folder `place`."""
        kind = kind or list(KINDS)[number % len(KINDS)]
        rng = np.random.default_rng([SEED, number])
        folder = place / "case"
        shutil.copytree(self.artifact(kind), folder)
        with inside(folder):
            pattern = pick(rng, KINDS[kind].files)
            file = pick(rng, sorted(path for path in Path().glob(pattern) if path.is_file()))
            change = mutated_file(file, rng, place / "aside")
            if rng.integers(2):
                sealed_again(file)
            return Case(kind, str(file), change, self.judged(kind, place))

    def untouched(self, kind: str, place: Path) -> Outcome:
        """The same with nothing changed: it must be right, or no other outcome means anything."""
        shutil.copytree(self.artifact(kind), place / "case")
        with inside(place / "case"):
            return self.judged(kind, place)

    def judged(self, kind: str, place: Path) -> Outcome:
        """The outcome for the artifact in the working directory."""
        return judged(KINDS[kind].door(), place, Path.cwd() / KINDS[kind].out)


class inside:  # noqa: N801  (a function by its use)
    """The working directory, for a while."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> None:
        self._before = Path.cwd()
        os.chdir(self._folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._before)
