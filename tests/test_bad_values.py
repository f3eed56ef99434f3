"""What no run can mean is refused in one sentence before anything is computed, and what is merely unusual is not."""

import json

import bad_values
import numpy as np
import pytest
import runs
from safetensors.numpy import save_file

from jhsae import config
from jhsae.errors import UserError
from jhsae.teacher.artifact import SHAPES
from jhsae.training import run
from jhsae.training.config import Train


class ReachedError(Exception):
    """The run got to where it would begin to write and to compute."""


def teacher_of_zeros(folder):
    """One parent with two children, all of whose arrays are 0 but the covariance."""
    sizes = {"parents": 1, "children": 2, "sub": 2, "embed": runs.EMBED}
    arrays = {name: np.zeros([sizes[axis] for axis in axes], np.float32) for name, axes in SHAPES.items()}
    arrays |= {"counts": np.array([2], np.int32), "sigma": np.eye(runs.EMBED, dtype=np.float32)}
    child = {"id": "c", "name": "c", "tokens": [1], "children": []}
    concepts = [{"id": "p", "name": "p", "tokens": [1, 2], "children": [child, child]}]
    folder.mkdir()
    save_file(arrays, folder / "teacher.safetensors")
    numbers = {"format": 1, "concepts": concepts, "provenance": {"model": "array"}, "validation": {}}
    (folder / "teacher.json").write_text(json.dumps(numbers))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store, a teacher of zeros, and the two configs that the values are tried in."""
    place = tmp_path_factory.mktemp("values")
    runs.store(place / "store")
    teacher_of_zeros(place / "zeros")
    stages = [{"name": "all", "steps": 40, "learning_rate": 1e-2}]
    runs.train_config(place, place / "store", place / "tree")
    objective = {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}}
    changes = {"sae": bad_values.FLAT, "stages": stages, "objective": objective, "weights": {}, "init": []}
    runs.train_config(place, place / "store", place / "flat", **changes)
    return place


@pytest.fixture(autouse=True)
def stop(monkeypatch):
    """Nothing is written or computed here."""

    def reached(*_):
        raise ReachedError

    monkeypatch.setattr(run, "write_metadata", reached)


def attempt(place, which, override):
    run.train(config.load(Train, place / f"{which}.yaml", [override.replace("{zeros}", str(place / "zeros"))]))


@pytest.mark.parametrize(("which", "override"), bad_values.cases())
def test_what_no_run_can_mean_is_one_sentence(place, which, override):
    before = sorted(place.iterdir())
    with pytest.raises(UserError) as refused:
        attempt(place, which, override)
    sentence = str(refused.value)
    assert len(sentence.splitlines()) == 1 and len(sentence) > 20, sentence
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(("which", "override"), [(w, o) for w, some in bad_values.LEGAL.items() for o in some])
def test_what_is_unusual_is_a_run_all_the_same(place, which, override):
    with pytest.raises(ReachedError):
        attempt(place, which, override)


def test_there_are_enough_of_them():
    assert len(set(bad_values.cases())) >= 200
