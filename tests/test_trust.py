"""Whose packages a file may name: those of jhsae and of the user's trust, and never the working directory's."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import runs

import jhsae
from jhsae import config
from jhsae.config.trust import trusted
from jhsae.data import Identity
from jhsae.errors import UserError
from jhsae.sae import FlatSAE
from jhsae.sparsify import TopK
from jhsae.training.checkpoint import load_sae, save_sae
from jhsae.training.config import Train

ABOUT = {"reads": {"model": None, "layer": None}}
PART = """
from pathlib import Path
from jhsae.sparsify import TopK
Path(__file__).with_name("imported").touch()
class MyTopK(TopK):
    pass
class NoPart:
    def __init__(self):
        Path(__file__).with_name("called").touch()
def my_top_k(k):
    return MyTopK(k)
again = TopK
"""
BAD = ("raise RuntimeError('no\\nway')", "import sys; sys.exit(3)", "def", "import nowhere_")
TRY = """
import sys
from jhsae import config
from jhsae.errors import UserError
from jhsae.training.config import Train
BEFORE
try:
    print(config.build(config.load(Train, sys.argv[1]).sae["sparsifier"]))
except UserError as error:
    print("refused:", error)
"""


def package(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(PART)
    return folder


def flat(target: str) -> dict:
    sparsifier = {"_target_": target, "k": 3}
    return {"_target_": "jhsae.sae.FlatSAE", "embed": runs.EMBED, "features": 8, "sparsifier": sparsifier}


def saved(folder: Path, target: str) -> Path:
    sae = FlatSAE(runs.EMBED, 8, TopK(3), key=jax.random.key(0))
    save_sae(folder / "sae", sae, flat(target), {"_target_": "jhsae.data.Identity"}, Identity(), ABOUT)
    return folder


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name of a package of somebody else, on the path."""
    monkeypatch.syspath_prepend(package(tmp_path / "code", "their_parts"))
    yield "their_parts"
    sys.modules.pop("their_parts", None)


def test_a_read_file_names_another_package_with_the_word_of_the_user_alone(tmp_path: Path, theirs: str, caplog):
    folder = saved(tmp_path / "run", f"{theirs}.MyTopK")
    for trust in ((), "jhsae", "their", ("other", "their_part")):
        with pytest.raises(UserError, match=r"sae\.sparsifier\._target_ is their_parts\.MyTopK, .*trust=their_parts"):
            load_sae(folder, trust=trust)
    assert not (tmp_path / "code" / "imported").exists() and theirs not in sys.modules
    for number, trust in enumerate((theirs, [theirs], ("other", theirs))):
        sae, *_ = jhsae.load_sae(folder, trust=trust)
        assert type(sae.sparsifier).__name__ == "MyTopK"
        said = caplog.text
        assert (said.count("\n") == 1 and "importing their_parts" in said) if number == 0 else not said
        caplog.clear()


@pytest.mark.parametrize("trust", ["a.b", "", "a b", ["x", "3"], "os.path", "-x"])
def test_trust_is_the_name_of_a_package(trust):
    with pytest.raises(UserError, match=r"trust is .*expected the name of a package without dots"):
        trusted(trust)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NoPart", r"expected a class derived from AbstractSparsifier"),
        ("my_top_k", r"which is a function, expected a class derived from AbstractSparsifier"),
        ("Path", r"expected a class derived from AbstractSparsifier"),
        ("my_topk", r"but their_parts has no my_topk; did you mean 'my_top_k'"),
        ("MyTopK.__init__", r"expected a dotted path"),
        ("MyTopK.encode", r"but their_parts has no MyTopK"),
    ],
)
def test_trust_is_in_the_parts_of_a_package_and_no_more(tmp_path: Path, theirs: str, name: str, said: str):
    with pytest.raises(UserError, match=said):
        load_sae(saved(tmp_path / "run", f"{theirs}.{name}"), trust=theirs)
    assert not (tmp_path / "code" / "called").exists()


def test_another_package_may_lend_a_part_of_jhsae_and_jhsae_none_of_others(tmp_path: Path, theirs: str):
    sae, *_ = load_sae(saved(tmp_path / "run", f"{theirs}.again"), trust=theirs)
    assert type(sae.sparsifier) is TopK
    mine = config.load(Train, written(tmp_path, "their_parts.MyTopK")).sae["sparsifier"].target
    jhsae.sparsify.lent = mine
    try:
        with pytest.raises(UserError, match="which lies in their_parts and not in jhsae; write its own name"):
            load_sae(saved(tmp_path / "lent", "jhsae.sparsify.lent"), trust=theirs)
    finally:
        del jhsae.sparsify.lent


def test_a_module_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number, text in enumerate(BAD):
        (tmp_path / f"bad_parts_{number}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for number in range(4):
        path = written(tmp_path, f"bad_parts_{number}.MyTopK")
        said = rf"importing bad_parts_{number} failed \(\w+: .*; mend that module"
        with pytest.raises(UserError, match=said) as caught:
            config.load(Train, path)
        assert "\n" not in str(caught.value) and f"bad_parts_{number}" not in sys.modules


def test_the_command_line_takes_the_word(tmp_path: Path, theirs: str, capsys):
    from jhsae.__main__ import main

    folder = saved(tmp_path / "run", f"{theirs}.MyTopK")
    words = ["import", f"source={folder}", f"out={tmp_path / 'out'}"]
    assert main(words) == 2 and "write trust=their_parts" in capsys.readouterr().err
    assert not (tmp_path / "code" / "imported").exists()
    assert main([*words, "trust=other"]) == 2
    assert main([*words, "trust=[other,their_parts]"]) == 0
    assert "importing their_parts" in capsys.readouterr().err
    assert main(["export", f"run={folder}", "format=folder", f"out={tmp_path / 'o'}", "trust=a.b"]) == 2
    assert "trust is 'a.b'" in capsys.readouterr().err


def test_what_is_trusted_leaves_hashes_as_they_were():
    from jhsae.commands.browse import Browse
    from jhsae.commands.evaluate import Evaluate
    from jhsae.commands.import_ import Import

    for make in (
        lambda t: Evaluate("r", "s", "l", trust=t),
        lambda t: Import("s", "o", trust=t),
        lambda t: Browse("r", "s", "o", "l", trust=t),
    ):
        assert config.config_hash(make([])) == config.config_hash(make("x"))


def test_a_run_is_resumed_with_the_packages_of_its_own_config(tmp_path: Path, theirs: str):
    mine = config.load(Train, written(tmp_path, f"{theirs}.MyTopK"))
    assert config.packages(mine) == (theirs,)
    config.write(mine, tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"config.yaml: sae.sparsifier._target_ is .*trust=their_parts"):
        config.read(Train, tmp_path / "config.yaml")
    assert config.read(Train, tmp_path / "config.yaml", config.packages(mine)) == mine


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "${out}", "a ${oc.env:SECRET} b"])
def test_a_config_that_was_read_gives_no_variable_away(tmp_path: Path, text: str, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    path = runs.train_config(tmp_path, tmp_path / "s", tmp_path / "r", teacher=text)
    with pytest.raises(UserError, match=r"r.yaml: teacher refers to other values by \$\{...\}") as caught:
        config.read(Train, path)
    assert "hunter2" not in str(caught.value)


def written(folder: Path, target: str) -> Path:
    return runs.train_config(folder, folder / "store", folder / "mine", sae=flat(target))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a package in it and a config that names it."""
    folder = package(tmp_path_factory.mktemp("cwd"), "local_parts")
    written(folder, "local_parts.MyTopK")
    (folder / "try.py").write_text(TRY.replace("BEFORE", ""))
    (folder / "before.py").write_text(TRY.replace("BEFORE", "import local_parts"))
    return folder


ROOT = str(Path(jhsae.__file__).parents[1])


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("how", "pythonpath", "found"),
    [
        (["-m", "try"], [], False),
        (["-m", "try"], ["."], False),
        (["-m", "try"], ["", "HERE"], True),
        (["-c", TRY.replace("BEFORE", "")], [""], False),
        (["try.py"], [], False),
        (["before.py"], [], True),
    ],
)
def test_the_working_directory_is_no_place_of_packages(elsewhere: Path, how, pythonpath, found: bool):
    (elsewhere / "imported").unlink(missing_ok=True)
    entries = [ROOT, *(str(elsewhere) if entry == "HERE" else entry for entry in pythonpath)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(entries), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *how, "mine.yaml"], cwd=elsewhere, env=env, capture_output=True, text=True, timeout=120
    )
    assert (elsewhere / "imported").exists() == found, done
    if found:
        assert "MyTopK" in done.stdout, done
    else:
        assert "refused:" in done.stdout and "the package local_parts is found in the working directory" in done.stdout
        assert "as an absolute path" in done.stdout


def test_an_installed_package_wins_over_one_of_that_name_in_the_working_directory(tmp_path, monkeypatch):
    package(tmp_path / "here", "twin_parts")
    package(tmp_path / "installed", "twin_parts")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "here"), *sys.path, str(tmp_path / "installed")])
    sparsifier = config.load(Train, written(tmp_path, "twin_parts.MyTopK")).sae["sparsifier"]
    monkeypatch.delitem(sys.modules, "twin_parts")
    assert config.build(sparsifier).k == 3
    assert not (tmp_path / "here" / "imported").exists() and (tmp_path / "installed" / "imported").exists()


def test_an_editable_installation_in_the_working_directory_counts(tmp_path, monkeypatch):
    package(tmp_path, "edited_parts")
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "edited.pth").write_text(f"# comment\n{tmp_path}\nimport os\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    path = written(tmp_path, "edited_parts.MyTopK")
    with pytest.raises(UserError, match="found in the working directory alone"):
        config.load(Train, path)
    monkeypatch.setattr("site.getsitepackages", lambda: [str(site)])
    assert config.load(Train, path).sae["sparsifier"].target.__name__ == "MyTopK"
    del sys.modules["edited_parts"]


def test_a_namespace_package_does_not_grow_into_the_working_directory(tmp_path, monkeypatch):
    for folder, name in (("here", "evil"), ("installed", "good")):
        (tmp_path / folder / "spread_parts").mkdir(parents=True)
        package(tmp_path / folder / "spread_parts", name)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "here"), *sys.path, str(tmp_path / "installed")])
    config.load(Train, written(tmp_path, "spread_parts.good.MyTopK"))
    with pytest.raises(UserError, match="but spread_parts has no evil"):
        config.load(Train, written(tmp_path, "spread_parts.evil.MyTopK"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "spread_parts"]:
        del sys.modules[name]
