"""``jhsae train`` of several configs: a YAML with ``runs:``, or several YAMLs, and what each may be given."""

from pathlib import Path

import pytest
import runs
import yaml

import jhsae
from jhsae import config as cfg
from jhsae.__main__ import main
from jhsae.errors import UserError
from jhsae.training.config import Train
from jhsae.training.many_config import load_many

SHORT = "stages=[{name: a, steps: 4, learning_rate: 0.01}]"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with a store, a config of two runs, and the config that they start from."""
    monkeypatch.chdir(tmp_path)
    runs.store(Path("store"))
    sparsifier = {"_target_": "jhsae.sparsify.TopK", "k": 3}
    sae = {"_target_": "jhsae.sae.FlatSAE", "embed": runs.EMBED, "features": 24, "sparsifier": sparsifier}
    objective = {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}}
    runs.train_config(Path("."), Path("store"), Path("one"), sae=sae, objective=objective, weights={}, init=[])
    several = {"out": "sweep", "train": "one.yaml", "overrides": [SHORT]}
    several["runs"] = {
        "narrow": ["sae.features=12"],
        "seed": {"train": "one.yaml", "overrides": ["seed=1", "stages.0.steps=6"]},
    }
    Path("several.yaml").write_text(yaml.safe_dump(several))
    return tmp_path


def test_one_yaml_of_runs(place, capsys):
    """Every run has its folder; overrides of the command line are those of all, `out` is that of the folders."""
    assert main(["train", "several.yaml", "out=elsewhere", "sae.sparsifier.k=2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "elsewhere/narrow: 4 steps, explained variance" in "\n".join(printed)
    assert (
        printed[-1].startswith("elsewhere/seed: 6 steps") and "next: jhsae evaluate run=elsewhere/seed" in printed[-1]
    )
    loaded = {name: jhsae.load_sae(place / "elsewhere" / name)[0] for name in ("narrow", "seed")}
    assert {name: (sae.features, sae.sparsifiers[0].k) for name, sae in loaded.items()} == {
        "narrow": (12, 2),
        "seed": (24, 2),
    }
    words = [SHORT, "seed=1", "stages.0.steps=6", "sae.sparsifier.k=2", "out=elsewhere/seed"]
    assert cfg.load(Train, "elsewhere/seed/config.yaml") == cfg.load(Train, "one.yaml", words)


def test_several_yamls(place, capsys):
    Path("two.yaml").write_text("base: one.yaml\nout: two\nseed: 4\n")
    assert main(["train", "one.yaml", "two.yaml", SHORT]) == 0
    assert capsys.readouterr().out.count(": 4 steps, explained variance") == 2
    assert cfg.load(Train, "two/config.yaml").seed == 4 and cfg.load(Train, "one/config.yaml").seed == 0


def test_from_python(place):
    """YAMLs and configs; the second time all are finished."""
    mixed = ["several.yaml", cfg.load(Train, "one.yaml", [SHORT, "out=two"])]
    folders = jhsae.train_many(mixed, ["data.batch=32"])
    assert [str(folder) for folder in folders] == ["sweep/narrow", "sweep/seed", "two"]
    batches = [cfg.load(Train, f"{folder}/config.yaml").data.batch for folder in folders]
    assert batches == [32, 32, 64] and jhsae.train_many(mixed, ["data.batch=32"]) == folders


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"runs": {"a/b": []}}, r"several.yaml: runs has the name 'a/b', expected one that a folder of sweep can have"),
        ({"runs": {}}, r"runs"),
        ({"train": None}, r"runs.narrow is a list of overrides, but train names no config"),
        ({"runs": {"a": ["sae.feature=3"]}}, r"runs.a: .*feature.*did you mean 'features'"),
        ({"runs": {"a": {"overrides": []}}}, r"runs.*train"),
        ({"run": {}}, r"run is not a key of Many; did you mean 'runs'"),
        ({"train": "nowhere.yaml"}, r"runs.narrow: there is no config file nowhere.yaml"),
    ],
)
def test_what_is_wrong_in_the_yaml_is_a_sentence(place, change, sentence):
    tree = yaml.safe_load(Path("several.yaml").read_text()) | change
    Path("several.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=sentence):
        load_many([Path("several.yaml")], [])


def test_a_word_that_is_no_config_is_an_override_as_before(place, capsys):
    assert main(["train", "one.yaml", "sae.embed"]) == 2
    assert "sets nothing, expected key=value" in capsys.readouterr().err
    assert main(["train", "one.yaml", "nowhere.yaml"]) == 2
    assert "there is no config file nowhere.yaml" in capsys.readouterr().err


def test_a_run_that_diverges_ends_the_command_with_its_code(place, capsys):
    assert main(["train", "several.yaml", "runs.bad=[stages.0.learning_rate=1e30]"]) == 3
    said = capsys.readouterr().err
    assert "error: 1 of 3 runs failed, the others are finished: sweep/bad: the loss is not finite at step" in said
    assert (place / "sweep/narrow/sae/sae.safetensors").exists() and not (place / "sweep/bad/sae").exists()
