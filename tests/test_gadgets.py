"""No name in a file is called: every gadget, through every reader, is one sentence and leaves no trace."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import runs
import yaml
from gadgets import Watch, gadgets

from jhsae import config
from jhsae.__main__ import main
from jhsae.commands.evaluate import expert_names
from jhsae.data import Identity
from jhsae.errors import UserError
from jhsae.interop import hub
from jhsae.sae import FlatSAE
from jhsae.sparsify import TopK
from jhsae.training.checkpoint import load_sae, save_sae
from jhsae.training.config import Train
from jhsae.training.run_folder import check_owner

WATCH = Watch()
TOP = {"_target_": "jhsae.sparsify.TopK", "k": 3}
FLAT = {"_target_": "jhsae.sae.FlatSAE", "embed": runs.EMBED, "features": 8, "sparsifier": TOP}
TREE = {"_target_": "jhsae.sae.HierarchicalSAE", "embed": runs.EMBED, "experts": 4, "sub": 2, "atoms": 2}
TREE |= {"route": TOP, "pick": TOP}
IDENTITY = {"_target_": "jhsae.data.Identity"}


def of_saved(gadget: Any) -> list[dict[str, Any]]:
    """Where a gadget may stand in sae.json: at a slot, in one, at the value of an argument, in lists and mappings."""
    batch = {"_target_": "jhsae.sparsify.BatchTopK", "k": gadget}
    saes = [
        gadget,
        FLAT | {"sparsifier": gadget},
        FLAT | {"sparsifier": batch},
        FLAT | {"code_unit": gadget},
        FLAT | {"embed": gadget},
        FLAT | {"apply_b_dec_to_input": [gadget]},
        FLAT | {"sparsifier": [TOP, gadget]},
        FLAT | {"more": gadget},
        FLAT | {"sparsifier": {"a": gadget}},
        TREE | {"tie": [gadget]},
        TREE | {"biases": [["encoder", {"a": gadget}]]},
        TREE | {"child_input": gadget},
    ]
    slots = [{"sae": sae, "normalize": IDENTITY} for sae in saes]
    rounded = {"_target_": "jhsae.data.UnitNorm", "eps": gadget}
    return [*slots, {"sae": FLAT, "normalize": gadget}, {"sae": FLAT, "normalize": rounded}]


def of_training(gadget: Any) -> list[dict[str, Any]]:
    """Where it may stand in a training config, as changes of one."""
    live = {
        "_target_": "jhsae.activations.live.LiveActivations",
        "path": "embedded",
        "layer": 1,
        "text": gadget,
        "rows": 9,
    }
    metric = {"_target_": "jhsae.constraint.Renormalize", "metric": gadget}
    return [
        *({"sae": slots["sae"]} for slots in of_saved(gadget)[:-2]),
        {"objective": {"a": gadget}},
        {"objective": gadget},
        {"weights": {"parents_only": gadget}},
        {"init": [gadget]},
        {"init": gadget},
        {"metric": gadget},
        {"constraint": metric},
        {"optimizer": gadget},
        {"optimizer": {"_target_": "jhsae.optimizer.adam", "b1": gadget}},
        {"resampling": gadget},
        {"stages": [{"name": "all", "steps": 1, "learning_rate": gadget}]},
        {"stages": [{"name": gadget, "steps": 1, "learning_rate": 1.0}]},
        {"data": {"store": "s", "batch": 64, "normalize": gadget}},
        {"data": {"batch": 64, "live": live}},
        {"mesh": gadget},
        {"out": gadget},
    ]


THIRD: dict[Path, int] = {}  # of the gadgets: one by default, the others with -m slow


@pytest.fixture(scope="module", params=[0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty one in it, `trap`, in which gadgets would leave their files."""
    folder = tmp_path_factory.mktemp(f"third-{request.param}-")
    (folder / "trap").mkdir()
    THIRD[folder] = request.param
    return folder


@pytest.fixture(scope="module")
def sae() -> FlatSAE:
    return FlatSAE(runs.EMBED, 8, TopK(3), key=jax.random.key(0))


def cases(place: Path, where: Any, count: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every gadget in `count` places, other ones from gadget to gadget, so that every place gets many."""
    for i, (name, gadget) in enumerate(gadgets(place / "trap").items()):
        if i % 3 != THIRD[place]:
            continue
        found = where(gadget)
        chosen = {(i + step * len(found) // count) % len(found) for step in range(count)}
        yield from ((f"{name}, place {at}", found[at]) for at in chosen)


def refused(call: Any, name: str, place: Path) -> str:
    """The sentence with which `call` refuses, after a look at what it did meanwhile."""
    with WATCH.watching() as seen, pytest.raises(UserError) as caught:
        call()
    assert not seen, f"{name}: {seen}"
    assert not [*(place / "trap").iterdir()], name
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 1200, f"{name}: {sentence[:2000]}"
    return sentence


def written(place: Path, changes: dict[str, Any]) -> Path:
    """A training config with those changes."""
    path = runs.train_config(place, place / "store", place / "t")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path


def saved(place: Path, sae: FlatSAE, slots: dict[str, Any]) -> Path:
    """A run folder whose SAE names a gadget."""
    folder = place / "run"
    shutil.rmtree(folder, ignore_errors=True)
    save_sae(folder / "sae", sae, slots["sae"], slots["normalize"], Identity(), {"name": "x"})
    return folder


def test_there_are_enough_gadgets_and_they_fire_if_called(tmp_path: Path):
    found = gadgets(tmp_path)
    assert len(found) >= 40
    with WATCH.watching() as seen:
        open(**{key: value for key, value in found["open"].items() if key != "_target_"}).close()
    assert seen and [*tmp_path.iterdir()]


def test_no_gadget_imports_another_library():
    code = """
import sys
from gadgets import gadgets
from pathlib import Path
from jhsae.config import Supplied, checked
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE
before = {name.partition(".")[0] for name in sys.modules}
for slot in gadgets(Path("none")).values():
    try:
        checked(slot, "sae.json", Supplied("key", kind=AbstractSAE))
    except UserError:
        continue
    raise AssertionError(slot)
print(sorted({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names))
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    found = set(ast.literal_eval(done.stdout)) if done.returncode == 0 else {done.stderr}
    assert not found & {"torch", "sae_lens", "hydra", "antigravity", "tensorflow"} and done.returncode == 0, found


def test_load_sae(place: Path, sae: FlatSAE):
    for name, slots in cases(place, of_saved, 6):
        folder = saved(place, sae, slots)
        sentence = refused(lambda folder=folder: load_sae(folder), name, place)
        assert sentence.startswith((f"{folder}/sae/sae.json: sae", f"{folder}/sae/sae.json: normalize")), sentence


@pytest.mark.parametrize("verb", ["evaluate", "export", "browse", "steer", "import", "import from the hub"])
def test_verbs_that_read_a_saved_sae(verb: str, place: Path, sae: FlatSAE, capsys, monkeypatch):
    for name, slots in cases(place, of_saved):
        folder, out = saved(place, sae, slots), place / "out.html"
        monkeypatch.setattr(hub, "pull", lambda *_, folder=folder: folder)
        words = {
            "evaluate": [f"run={folder}", "store=s", "lm=embedded"],
            "export": [f"run={folder}", "format=folder", f"out={out}"],
            "browse": [f"run={folder}", "store=s", "lm=embedded", f"out={out}"],
            "steer": [f"run={folder}", "lm=embedded", "prompts=[a]", f"out={out}"],
            "import": [f"source={folder}", f"out={out}"],
            "import from the hub": ["source=hf://org/name", f"out={out}"],
        }[verb]
        told(verb.split()[0], words, name, place, capsys)
        assert not out.exists(), name


def told(verb: str, words: list[str], name: str, place: Path, capsys) -> None:
    """The command line says one sentence and exits with code 2."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # as `main` does
    with WATCH.watching() as seen:
        code = main([verb, *words])
    assert not seen, f"{name}: {seen}"
    assert not [*(place / "trap").iterdir()], name
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and len(err) < 1300, f"{name}: {code} {err}"


@pytest.mark.parametrize("words_of", ["file", "override"])
def test_training_configs(words_of: str, place: Path, capsys):
    for name, changes in cases(place, of_training, 2):
        if words_of == "file":
            path = written(place, changes)
            told("train", [str(path)], name, place, capsys)
        else:
            path = runs.train_config(place, place / "store", place / "t")
            ((key, value),) = changes.items()
            told("train", [str(path), f"{key}={json.dumps(value)}"], name, place, capsys)


def test_the_config_of_a_run_that_is_resumed(place: Path):
    mine = config.load(Train, runs.train_config(place, place / "store", place / "mine"))
    (place / "mine").mkdir()
    for name, changes in cases(place, of_training, 2):
        written(place, changes).rename(place / "mine" / "config.yaml")
        refused(lambda: check_owner(place / "mine", mine), name, place)
        with WATCH.watching() as seen:
            assert expert_names(place / "mine") == {}  # no part of it is looked at
        assert not seen and not [*(place / "trap").iterdir()], name


@pytest.mark.parametrize("verb", ["harvest", "teach"])
def test_configs_of_harvests_and_teachers(verb: str, place: Path, capsys):
    def of_harvest(gadget: Any) -> list[dict[str, Any]]:
        text = {"_target_": "jhsae.data.TextFiles", "paths": [gadget]}
        whole = {"out": "o", "lm": {"path": "embedded", "layer": 1}, "rows": 9, "text": text}
        return [whole, whole | {"text": gadget}, whole | {"rows": gadget}, whole | {"lm": gadget}]

    def of_teacher(gadget: Any) -> list[dict[str, Any]]:
        whole = {"out": "o", "lm": {"path": "embedded"}}
        prompts = {"_target_": "jhsae.teacher.Prompts", "templates": [gadget]}
        keys = {"evidence": gadget, "estimator": gadget, "limits": gadget, "concepts": [gadget]}
        return [whole | {"evidence": prompts}, *(whole | {key: value} for key, value in keys.items())]

    for name, tree in cases(place, of_harvest if verb == "harvest" else of_teacher):
        (place / "c.yaml").write_text(yaml.safe_dump(tree))
        told(verb, [str(place / "c.yaml")], name, place, capsys)
