"""Names and hashes that were published stay good, and so they would if a part moved to another file."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import optax
import pytest
import runs
import yaml
from test_configs import CONFIGS, FILES, name_of, verb_of

from jhsae import config, init, sae, sparsify
from jhsae.commands import table as commands
from jhsae.commands.evaluate import expert_names
from jhsae.config import aliases
from jhsae.config.place import Place
from jhsae.config.schema import wanted
from jhsae.config.target import locate
from jhsae.config.trust import Trust
from jhsae.constraint import AbstractConstraint
from jhsae.data import AbstractNormalizer, Identity
from jhsae.data.source import AbstractSource
from jhsae.data.text import AbstractText
from jhsae.errors import UserError
from jhsae.init import AbstractInit
from jhsae.losses import AbstractTerm
from jhsae.metric import AbstractMetric
from jhsae.resampling import AbstractResampling
from jhsae.sae.children import AbstractChildInput, AbstractChildScale
from jhsae.sae.units import AbstractCodeUnit
from jhsae.schedule import AbstractSchedule
from jhsae.teacher import AbstractEstimator, AbstractEvidence
from jhsae.training.checkpoint import load_sae, save_sae
from jhsae.training.config import OPTIMIZER, Train
from jhsae.training.fit import fit
from jhsae.worlds import AbstractMagnitudes, AbstractProbabilities

saelens_write = importlib.import_module("jhsae.interop.saelens.write")  # the package has a function of that name
ROOT = Path(__file__).parents[1]
PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())  # as of commit 4b4ae9c
KINDS = (
    AbstractChildInput, AbstractChildScale, AbstractCodeUnit, AbstractConstraint, AbstractEstimator, AbstractEvidence,
    AbstractInit, AbstractMagnitudes, AbstractMetric, AbstractNormalizer, AbstractProbabilities, AbstractResampling,
    AbstractSchedule, AbstractSource, AbstractTerm, AbstractText, optax.GradientTransformation, sae.AbstractSAE,
    sae.AbstractCandidates, sae.AbstractSkip, sparsify.AbstractRule,
)  # fmt: skip
RESAMPLE = "{_target_: jhsae.revival.Resample, every: 1, until: 4}"
TARGET = re.compile(r"""_target_["']?\s*:\s*["']?(jhsae(?:\.\w+)+)""")


def resolved(name: str):
    """What a file that was read may mean by `name`, in whichever slot."""
    return locate(name, Place(trust=Trust()), wanted(KINDS, OPTIMIZER.functions))


def texts() -> dict[str, str]:
    """Everything that was published with names in it, by its path."""
    endings = {".yaml", ".jsonl", ".json", ".py", ".md"}
    files = [f for folder in ("configs", "experiments") for f in (ROOT / folder).rglob("*") if f.suffix in endings]
    found = {str(file): file.read_text() for file in [*files, ROOT / "README.md"]}
    for file in (ROOT / "tests" / "golden").glob("*.npz"):
        with np.load(file, allow_pickle=False) as arrays:
            found[str(file)] = "\n".join(str(arrays[name]) for name in arrays if arrays[name].dtype.kind == "U")
    return found


def test_every_name_that_was_published_is_a_part():
    found = {name: where for where, text in texts().items() for name in TARGET.findall(text)}
    assert len(found) > 60 and len(PUBLISHED["names"]) == 90 and "jhsae.optimizer.adam" in found
    for name in {*found, *PUBLISHED["names"]}:
        assert callable(resolved(name)), f"{name}, in {found.get(name)}; write its new place into {aliases.__name__}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_hash_of_a_config_is_what_it_was(file: Path):
    verb = verb_of(file)
    cls = getattr(commands.module(verb), verb.capitalize())
    if name_of(file) in PUBLISHED["config_hashes"]:  # not a config that is younger
        assert config.config_hash(config.load(cls, file)) == PUBLISHED["config_hashes"][name_of(file)]
    assert PUBLISHED["config_hashes"].keys() <= {name_of(f) for f in FILES}


@pytest.mark.parametrize("results", ["plan/results.jsonl", "bench/tpu_memory.jsonl"])
def test_the_hash_of_a_config_with_overrides_is_the_one_in_the_results(results: str):
    rows = [json.loads(line) for line in (ROOT / "experiments" / results).read_text().splitlines()]
    for config_file, overrides, published in {(r["config"], *_key(r)) for r in rows}:
        loaded = config.load(Train, CONFIGS / config_file, overrides)
        assert config.config_hash(loaded) == published, overrides


def _key(row: dict) -> tuple[tuple[str, ...], str]:
    return tuple(row["overrides"]), row["config_hash"]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a class and a package had been published under other names, one of them twice."""
    monkeypatch.setattr(
        aliases,
        "MOVED",
        {
            "jhsae.oldest": "jhsae.sparsify",
            "jhsae.old": "jhsae.sparsify",
            "jhsae.old.Uppermost": "jhsae.sparsify.TopK",
            "jhsae.start.Taught": "jhsae.init.FromTeacher",
        },
    )


def test_an_old_name_is_found_at_its_new_place(moved: None):
    assert resolved("jhsae.old.TopK") is resolved("jhsae.oldest.TopK") is sparsify.TopK
    assert resolved("jhsae.old.Uppermost") is resolved("jhsae.sparsify.TopK") is sparsify.TopK
    assert resolved("jhsae.start.Taught") is init.FromTeacher
    with pytest.raises(UserError, match=r"is jhsae\.older\.TopK, but jhsae has no older"):
        resolved("jhsae.older.TopK")  # no prefix of it but letters


def test_hashes_and_differences_are_those_of_the_published_name(moved: None, tmp_path: Path):
    def run(name: str) -> Train:
        slot = {"_target_": "jhsae.sae.FlatSAE", "embed": 16, "features": 8, "sparsifier": {"_target_": name, "k": 3}}
        return config.load(Train, runs.train_config(tmp_path, tmp_path / "s", tmp_path / "r", sae=slot))

    new, old, oldest = run("jhsae.sparsify.BatchTopK"), run("jhsae.old.BatchTopK"), run("jhsae.oldest.BatchTopK")
    assert config.config_hash(new) == config.config_hash(old) == config.config_hash(oldest)
    assert config.diff(new, oldest) == [] != config.diff(new, run("jhsae.sparsify.TopK"))
    assert config.published("jhsae.sparsify.BatchTopK") == "jhsae.oldest.BatchTopK"
    assert config.published("jhsae.sparsify.TopK") == config.published("jhsae.old.TopK") == "jhsae.old.Uppermost"
    assert aliases.with_published_names([{"a": {"_target_": "jhsae.sparsify.ReLU", "k": ["jhsae.sparsify.ReLU"]}}]) == [
        {"a": {"_target_": "jhsae.oldest.ReLU", "k": ["jhsae.sparsify.ReLU"]}}
    ]


def test_a_hash_that_was_published_survives_a_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = CONFIGS / "flat" / "topk.yaml"
    before = config.config_hash(config.load(Train, file))
    moved = file.read_text().replace("jhsae.sparsify.", "jhsae.sparsify.base.").replace("jhsae.losses.", "jhsae.terms.")
    (tmp_path / "moved.yaml").write_text(moved)
    for module, new in ((sparsify, "jhsae.sparsify.base"), (importlib.import_module("jhsae.losses"), "jhsae.terms")):
        monkeypatch.setitem(importlib.import_module("sys").modules, new, module)
        monkeypatch.setitem(aliases.MOVED, module.__name__, new)
    monkeypatch.setattr("jhsae.config.target._submodules", lambda module: {"base", "terms"})
    assert "jhsae.terms" in moved and config.config_hash(config.load(Train, tmp_path / "moved.yaml")) == before
    assert config.config_hash(config.load(Train, file)) == before


def test_other_readers_follow(moved: None, tmp_path: Path):
    slot = {"_target_": "jhsae.sae.FlatSAE", "embed": 16, "features": 8}
    slot |= {"sparsifier": {"_target_": "jhsae.oldest.JumpReLU"}}
    made = sae.FlatSAE(16, 8, sparsify.JumpReLU(), key=jax.random.key(0))
    save_sae(tmp_path / "sae", made, slot, {"_target_": "jhsae.data.Identity"}, Identity(), {})
    loaded, _, about = load_sae(tmp_path / "sae")
    assert isinstance(loaded.sparsifier, sparsify.JumpReLU) and about["sae"]["sparsifier"] == slot["sparsifier"]


def test_comparisons_know_both_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("jhsae.init.FromTeacher", "jhsae.begin.FromTeacher", "jhsae.init.UnitDecoder"):
        monkeypatch.setattr(aliases, "MOVED", {"jhsae.init": "jhsae.begin"})
        init_slots = [{"_target_": name, "path": "no-teacher"}]
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"init": init_slots, "teacher": str(tmp_path / "none")}))
        if name.endswith("UnitDecoder"):
            assert expert_names(tmp_path) == {}
        else:
            with pytest.raises(UserError, match="no teacher"):
                expert_names(tmp_path)
    monkeypatch.setattr(aliases, "MOVED", {"jhsae.sparsify.BatchTopK": "jhsae.parts.OverTheBatch"})
    saelens_write = importlib.import_module("jhsae.interop.saelens.write")  # the package has a function of that name
    about = {"sae": {"_target_": "jhsae.parts.OverTheBatch"}, "reads": {"model": None, "layer": None}}
    expected = saelens_write._metadata({**about, "sae": {"_target_": "jhsae.sparsify.BatchTopK"}})
    assert saelens_write._metadata(about) == expected and expected["training_architecture"] is not None


def found(name: str) -> object:
    """A module, or a member of one, as a script imports it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, member = name.rpartition(".")
        return getattr(importlib.import_module(module), member)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_finds_what_moved_by_its_old_name():
    for old, new in aliases.MOVED.items():
        there = found(new)
        if old == "jhsae.constraint.Free":  # its module is where it was: configs alone follow
            assert resolved(old) is there
        elif not isinstance(there, ModuleType):
            assert found(old) is there, old
        else:
            for name in [n for n in vars(there) if not n.startswith("_") and f"{old}.{n}" not in aliases.MOVED][:3]:
                assert getattr(found(old), name) is getattr(there, name), old
    sys.modules.pop("jhsae.loop")
    with pytest.warns(DeprecationWarning, match=r"jhsae\.loop is now jhsae\.training\.loop"):
        importlib.import_module("jhsae.loop")


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("jhsae.loops")
    with pytest.raises(ImportError):
        importlib.import_module("jhsae.loop.Phase")  # a class is no module


def test_renamed_keys_are_read_hashed_and_overridden_by_both_names(tmp_path: Path):
    path = runs.train_config(tmp_path, tmp_path / "s", tmp_path / "r")
    new, old = tmp_path / "new.yaml", tmp_path / "old.yaml"
    new.write_text(path.read_text() + "max_to_keep: 3\nfeature_sampling_window: 7\n")
    old.write_text(path.read_text() + "keep: 3\nsampling_window: 7\n")
    a, b = config.load(Train, new), config.load(Train, old)
    assert a == b and a.max_to_keep == 3 and config.config_hash(a) == config.config_hash(b)
    assert config.load(Train, path, ["keep=3", "sampling_window=7"]) == a
    every, until = (
        config.load(Train, path, [f"{key}={RESAMPLE}", f"{key}.every=2"]) for key in ("revival", "resampling")
    )
    assert every == until and every.resampling["every"] == 2
    old.write_text(new.read_text() + "keep: 4\n")
    with pytest.raises(UserError, match=r"old\.yaml: keep and max_to_keep are one key, and both are there; write max_"):
        config.load(Train, old)
    with pytest.raises(UserError, match=r"override max_to_keep=0: max_to_keep is 0, expected at least 1"):
        config.load(Train, path, ["keep=0"])


def test_fit_takes_renamed_arguments_by_their_old_names():
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    made = sae.FlatSAE(16, 8, sparsify.TopK(3), key=jax.random.key(0))
    with pytest.warns(DeprecationWarning, match="sampling_window is now feature_sampling_window"):
        old = fit(made, x, steps=2, batch=32, sampling_window=1)[1]
    assert old == fit(made, x, steps=2, batch=32, feature_sampling_window=1)[1]
    with pytest.raises(TypeError, match="sampling_window"):
        fit(made, x, steps=2, sampling_window=1, feature_sampling_window=1)
