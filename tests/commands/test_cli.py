"""The command line: verbs are found, errors are one line, help lists the keys of the config."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest

import jhsae.commands.train
from jhsae.__main__ import main
from jhsae.commands.table import VERBS
from jhsae.errors import UserError


@dataclass(frozen=True)
class Train:
    steps: Annotated[int, "optimizer steps"]
    out: str = "runs/x"


@dataclass(frozen=True)
class Quickstart:
    seed: int = 0


def verb_module(**members) -> ModuleType:
    """A module that stands for one of jhsae.commands."""
    made = ModuleType("verb")
    vars(made).update(members)
    return made


@pytest.fixture
def ran(monkeypatch) -> list:
    """The configs that the dummy verbs were run with."""
    runs: list = []
    monkeypatch.setitem(sys.modules, "jhsae.commands.train", verb_module(Train=Train, run=runs.append))
    monkeypatch.setitem(sys.modules, "jhsae.commands.quickstart", verb_module(Quickstart=Quickstart, run=runs.append))
    return runs


@pytest.fixture
def yaml(tmp_path: Path) -> str:
    (tmp_path / "a.yaml").write_text("steps: 3")
    return str(tmp_path / "a.yaml")


def test_a_verb_runs_with_its_config_under_the_overrides(ran: list, yaml: str):
    assert main(["train", yaml, "out=runs/y"]) == 0
    assert ran == [Train(3, "runs/y")]


def test_quickstart_needs_no_config(ran: list, tmp_path: Path, monkeypatch):
    (tmp_path / "quickstart.yaml").write_text("seed: 1")
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart"]) == 0
    assert main(["quickstart", "seed=5"]) == 0
    assert ran == [Quickstart(1), Quickstart(5)]


def test_a_user_error_is_one_line_and_code_2(ran: list, yaml: str, capsys):
    assert main(["train", yaml, "stepz=4"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and ran == []
    assert err.startswith("jhsae: error: ") and err.count("\n") == 1
    assert "stepz is not a key of Train; did you mean 'steps'?" in err


def test_a_missing_config_says_what_to_write(ran: list, capsys):
    assert main(["train"]) == 2
    assert "expected one: jhsae train" in capsys.readouterr().err


def test_a_sentence_that_quotes_a_file_steers_no_terminal_and_ends(yaml: str, monkeypatch, capsys):
    def fail(_: object) -> None:
        raise UserError("f holds \x1b[2J\u202e" + "a" * 5000 + "; write b")

    monkeypatch.setattr(jhsae.commands.train, "run", fail)
    assert main(["train", "flat/topk.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(r"jhsae: error: f holds \x1b[2J\u202eaaa") and said.endswith("aaa; write b\n")
    assert len(said) < 1000


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "/dev/zero", "/"])
def test_a_config_that_is_no_file(name: str, capsys):
    assert main(["train", name]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 1500


def test_a_user_error_from_the_run_itself_is_told_the_same_way(yaml: str, monkeypatch, capsys):
    def run(config: Train) -> None:
        raise UserError("runs/x holds\nanother config")

    monkeypatch.setitem(sys.modules, "jhsae.commands.train", verb_module(Train=Train, run=run))
    assert main(["train", yaml]) == 2
    assert capsys.readouterr().err == "jhsae: error: runs/x holds another config\n"


def test_a_bug_keeps_its_traceback_and_an_interrupt_is_code_130(yaml: str, monkeypatch, capsys):
    def run(config: Train) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "jhsae.commands.train", verb_module(Train=Train, run=run))
    error: BaseException = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        main(["train", yaml])
    error = KeyboardInterrupt()
    assert main(["train", yaml]) == 130
    assert capsys.readouterr().err == "jhsae: interrupted\n"


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_parity_fails_with_code_1(monkeypatch, passed: bool, code: int):
    calls: list = []

    def run(*given: Path) -> bool:
        calls.append(given)
        return passed

    monkeypatch.setitem(sys.modules, "jhsae.parity.compare", verb_module(run=run))
    assert main(["parity", "g.npz", "--json", "rows.json"]) == code
    assert calls == [(Path("g.npz"), Path("rows.json"))]


@pytest.mark.parametrize(("equal", "code"), [(True, 0), (False, 1)])
def test_bench_gives_its_flags_to_the_module_of_its_part(monkeypatch, equal: bool, code: int):
    calls: list = []

    def command(words) -> bool:
        calls.append(words)
        return equal

    monkeypatch.setitem(sys.modules, "jhsae.bench.step", verb_module(command=command))
    assert main(["bench", "step", "--embed", "8", "--experts", "4", "--batch", "2", "--seconds", "0.5"]) == code
    words = calls[0]
    assert (words.embed, words.experts, words.batch, words.k, words.seconds) == (8, 4, 2, 32, 0.5)
    assert not words.variants and words.json is None and words.original_batch is None


@pytest.mark.parametrize("part", ["step", "ops", "loader", "run"])
def test_every_part_of_bench_has_help_without_importing_it(part: str, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, f"jhsae.bench.{part}", None)  # an import of it fails
    with pytest.raises(SystemExit) as stop:
        main(["bench", part, "--help"])
    assert stop.value.code == 0
    assert f"example  jhsae bench {part}" in capsys.readouterr().out


def test_bench_without_a_size_says_which(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "step", "--embed", "8", "--batch", "2"])
    assert stop.value.code == 2
    assert "--experts" in capsys.readouterr().err


def test_help_of_a_verb_lists_the_keys(ran: list, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for part in (VERBS["train"].summary[1:], "reads", "writes", VERBS["train"].example):
        assert part in text
    steps = next(line for line in text.splitlines() if line.split()[:1] == ["steps"])
    assert steps.split(maxsplit=1)[1] == "int, required: optimizer steps"


def test_an_unknown_verb_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    assert stop.value.code == 2
    assert "harvest" in capsys.readouterr().err


def test_top_help_names_every_verb_without_importing_jax():
    code = "import sys, jhsae.__main__ as m\ntry: m.main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in [*VERBS, "parity", "bench"])
