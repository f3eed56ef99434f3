"""Every config of the package loads, strictly, as its verb's, and opens with the command that runs it."""

import importlib
from pathlib import Path

import pytest

from jhsae import config

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
VERB_OF_FOLDER = {
    "harvest": "harvest",
    "teacher": "teach",
    "ablations": "ablate",
    "evaluate": "evaluate",
    "report": "report",
}


def verb_of(file: Path) -> str:
    place = file.relative_to(CONFIGS).parts
    if place == ("quickstart.yaml",):
        return "quickstart"
    return VERB_OF_FOLDER.get(place[0], "train")


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_config_loads_as_its_verb_s(file: Path):
    verb = verb_of(file)
    cls = getattr(importlib.import_module(f"jhsae.{verb}"), verb.capitalize())
    assert isinstance(config.load(cls, file), cls)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_config_opens_with_its_command(file: Path):
    opening = [line for line in file.read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    assert file.read_text().startswith("#")
    assert any(f"jhsae {verb_of(file)}" in line for line in opening), f"no 'jhsae {verb_of(file)} ...' in its comment"
