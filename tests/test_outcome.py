"""How commands end: every expected failure is one line on stderr and an exit code of its own; a bug is a traceback."""

import errno
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
import yaml

from jhsae import __main__ as command
from jhsae.__main__ import EXIT_CODES, main
from jhsae.errors import NoRoomError, UserError, outcome
from jhsae.training import loop, run
from jhsae.training.logs import JsonLines
from jhsae.training.loop import DivergedError

OOM = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9999999999 bytes.")
TENSORSTORE = ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [OS error 28: ENOSPC No space]")


def caused(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("write\nthis"), 2, "write this"),
        (NoRoomError("no room"), 4, "no room"),
        (DivergedError("the loss is not finite", 3), 3, "the loss is not finite"),
        (OSError(errno.ENOSPC, "No space left on device", "a/metrics.jsonl"), 4, "a/metrics.jsonl cannot be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), 4, "a cannot be written"),
        (OSError(errno.EROFS, "Read-only file system", "a"), 2, r"a cannot be used \(.*Read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "a cannot be used"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "a/b cannot be used"),
        (FileExistsError(errno.EEXIST, "File exists", "a"), 2, "a cannot be used"),
        (TENSORSTORE, 4, "a file cannot be written"),
        (
            caused(RuntimeError("a thread"), OSError(errno.ENOSPC, "No space left on device", "x")),
            4,
            "cannot be",
        ),
        (ImportError("Please install gcsfs to access Google Storage"), 2, "a library is missing .*gcsfs"),
        (MemoryError("Unable to allocate 9 TiB"), 4, "memory is used up .*9 TiB"),
        (OOM, 4, "the memory of a device is used up .*data.batch"),
        (ValueError("embedded null byte"), 2, "characters that no file can have"),
    ],
)
def test_what_is_expected_has_a_sentence_and_a_code(error, code, words, monkeypatch, capsys):
    def fails(*_):
        raise error

    monkeypatch.setattr(command, "_run", fails)
    assert main(["train", "x.yaml"]) == code and code in EXIT_CODES
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("jhsae: error: ")
    assert re.search(words, said)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), FileNotFoundError(errno.ENOENT, "No such", "x")])
def test_a_bug_stays_a_traceback(error, monkeypatch):
    def fails(*_):
        raise error

    assert outcome(error) is None
    monkeypatch.setattr(command, "_run", fails)
    with pytest.raises(type(error)):
        main(["train", "x.yaml"])


@pytest.fixture
def config(tmp_path):
    """The YAML of a short run of a flat SAE."""
    runs.store(tmp_path / "store")
    sparsifier = {"_target_": "jhsae.sparsify.TopK", "k": 3}
    sae = {"_target_": "jhsae.sae.FlatSAE", "embed": runs.EMBED, "features": 24, "sparsifier": sparsifier}
    objective = {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}}
    stages = [{"name": "a", "steps": 6, "learning_rate": 1e-2}]
    changes = {"sae": sae, "objective": objective, "weights": {}, "init": [], "stages": stages, "log_every": 1}
    return runs.train_config(tmp_path, tmp_path / "store", tmp_path / "run", **changes)


def ends(config, capsys, *overrides):
    code = main(["train", str(config), *overrides])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jhsae: error:")]
    assert len(said) == 1, said
    return code, said[0]


def test_a_diverging_run_has_an_exit_code_of_its_own(config, capsys):
    code, said = ends(config, capsys, "stages.0.learning_rate=1e38", "stages.0.clip=null", "optimizer.eps=1e-30")
    assert code == 3 and "not finite" in said and "the last checkpoint is intact" in said


def test_a_full_disk_in_a_row_of_metrics(config, capsys, monkeypatch):
    def full(lines, row):
        raise OSError(errno.ENOSPC, "No space left on device", str(lines._path))

    monkeypatch.setattr(JsonLines, "write", full)
    code, said = ends(config, capsys)
    assert code == 4 and "metrics.jsonl cannot be written" in said and "same command" in said


def test_memory_that_is_used_up_in_a_step(config, capsys, monkeypatch):
    def exhausted(*_):
        raise OOM

    monkeypatch.setattr(loop, "_compiled", lambda *_: exhausted)
    code, said = ends(config, capsys)
    assert code == 4 and "data.batch" in said


def test_an_sae_that_no_memory_holds_is_refused_before_it_is_made(config, capsys):
    code, said = ends(config, capsys, "sae.features=2000000000")
    assert code == 2 and "GiB" in said and not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/run", "run cannot be written (File exists: "),
        ("store", "store exists and is not a run folder"),
        ("/proc/run", "/proc/run cannot be written (No such file or directory: "),
        ("{long}", "cannot be used (File name too long)"),
    ],
)
def test_a_folder_that_cannot_be_made(config, capsys, out, words):
    (config.parent / "file").write_text("x")
    code, said = ends(config, capsys, f"out={config.parent / out.format(long='x' * 300)}")
    assert code == 2 and words in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(config, capsys):
    (config.parent / "closed").mkdir(mode=0o500)
    code, said = ends(config, capsys, f"out={config.parent / 'closed' / 'run'}")
    assert code == 2 and "Permission denied" in said


def test_wandb_without_a_login(config, capsys, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuses(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuses)
    monkeypatch.setattr(run, "init_sharded", None)  # nothing is computed
    code, said = ends(config, capsys, "loggers=[wandb]")
    assert code == 2 and "No API key" in said and "WANDB_MODE=offline" in said and "loggers=[]" in said


def test_a_logger_that_is_not_installed_is_found_before_the_folder_is_made(config, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    code, said = ends(config, capsys, "loggers=[tensorboard]")
    assert code == 2 and "tensorboardX is not installed" in said and not (config.parent / "run").exists()


def test_a_dead_window_that_is_longer_than_the_run_is_said_once_and_recorded(config, capsys):
    tree = yaml.safe_load(config.read_text())
    tree["objective"]["auxk"] = {"_target_": "jhsae.losses.AuxK"}
    config.write_text(yaml.safe_dump(tree))
    assert main(["train", str(config)]) == 0
    said = capsys.readouterr().err
    assert said.count("no feature can be dead in 6 steps with a dead window of 1000, so that auxk will do nothing") == 1
    assert "no feature can be dead" in (config.parent / "run" / "run.json").read_text()


def test_a_reader_that_goes_away():
    many = "m._run = lambda *_: [print('x' * 99) for _ in range(9999)] and 0"
    code = f"import sys, jhsae.__main__ as m; {many}; sys.exit(m.main(['train', 'x.yaml']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141 and said == b""


@pytest.mark.parametrize("how", ["cd $(mktemp -d) && rmdir $PWD &&", "", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"])
def test_a_place_gone_a_closed_output_and_a_locale_without_utf8(how):
    """Each is one line: the shell removes the directory, closes stdout, or names a locale that has ASCII alone."""
    closed = "" if how else ">&-"
    line = f"{how} {sys.executable} -m jhsae report runs=[é] out=page.html {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and re.fullmatch(r"jhsae: error: .*\n", done.stderr), done.stderr


def test_help_lists_every_exit_code(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"{code:<4} {meaning}" in said for code, meaning in EXIT_CODES.items())
    assert np.unique(list(EXIT_CODES)).size == len(EXIT_CODES)
