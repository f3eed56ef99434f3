"""Every config of the package opens with the command that runs it, and loads, strictly, as the verb it names."""

import json
import re
from pathlib import Path

import pytest

from jhsae import config
from jhsae.commands.table import module
from jhsae.training.config import Train

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def verb_of(file: Path) -> str | None:
    """The verb of the command, in the opening comment, that names this very file; the quickstart needs no name."""
    named = rf"^#   jhsae (\w+) {re.escape(name_of(file))}\b"
    pattern = r"^#   jhsae (quickstart) " if file.name == "quickstart.yaml" else named
    found = re.search(pattern, file.read_text(), re.MULTILINE)
    return found and found[1]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_config_loads_as_the_verb_of_its_command(file: Path):
    verb = verb_of(file)
    assert verb, f"{name_of(file)} must open with a comment that holds the command: #   jhsae VERB {name_of(file)} ..."
    cls = getattr(module(verb), verb.capitalize())
    assert isinstance(config.load(cls, file), cls)


def test_the_numbers_of_the_flat_configs_are_those_of_their_results_file():
    results = CONFIGS.parent / "experiments" / "flat" / "results.jsonl"
    rows = {row["name"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert rows.keys() == {file.stem for file in (CONFIGS / "flat").glob("*.yaml")}
    for name, row in rows.items():
        file = CONFIGS / "flat" / f"{name}.yaml"
        m = row["metrics"]
        assert f"EV {m['ev_r2']:.3f}, CE recovered {m['ce_recovered']:.3f}, L0 {m['l0']:.1f}" in file.read_text()
        assert row["config_hash"] == config.config_hash(config.load(Train, file)), f"{name} has changed: run it"
        assert "dirty" not in row["commit"]


def test_a_younger_key_is_hashed_once_it_is_set():
    """With the value that older results were made with, it leaves their hashes as they were."""
    file = config.find("flat/topk.yaml")
    plain, same, other = (
        config.load(Train, file, words) for words in ([], ["precision=float32"], ["precision=bfloat16"])
    )
    assert config.config_hash(plain) == config.config_hash(same) != config.config_hash(other)
