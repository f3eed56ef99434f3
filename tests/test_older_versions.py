"""What commit 4b4ae9c saved loads and gives the numbers that it gave there: stores, teachers, runs, checkpoints."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jhsae
from jhsae import config as cfg
from jhsae.__main__ import main
from jhsae.data import Store
from jhsae.teacher import Teacher
from jhsae.training.config import Train

SAVED = Path(__file__).parent / "golden" / "saved"
RUNS = ("scale", "geometry", "batchtopk", "jumprelu", "gated")


@pytest.fixture(scope="module")
def expected():
    with np.load(SAVED / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy to write into, as the working directory: the runs name their store by a relative path."""
    shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_store_opens_and_holds_its_rows(expected):
    assert np.array_equal(Store.open(SAVED / "store").read(0, 32), expected["x"])


@pytest.mark.parametrize("name", RUNS)
def test_an_sae_reconstructs_as_it_did(name, expected):
    sae, normalizer, _ = jhsae.load_sae(SAVED / name)
    rows, token = normalizer(jnp.asarray(expected["x"]))
    codes = sae.encode(rows)
    assert np.array_equal(codes.l0(), expected[f"{name}.l0"])
    np.testing.assert_allclose(normalizer.undo(sae.decode(codes), token), expected[f"{name}.x_hat"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", RUNS)
def test_a_config_keeps_its_hash(name):
    recorded = json.loads((SAVED / name / "run.json").read_text())["config_hash"]
    for config in (SAVED / f"{name}.yaml", SAVED / name / "config.yaml"):
        assert cfg.config_hash(cfg.load(Train, config)) == recorded


def test_a_teacher_loads():
    teacher = Teacher.load(SAVED / "teacher")
    assert len(teacher.concepts) == len(teacher.parents) == 4


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_left_alone(name, folder, capsys):
    assert main(["train", f"{name}.yaml"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_run_resumes_from_its_checkpoint(folder):
    parameters = (folder / "scale" / "sae" / "sae.safetensors").read_bytes()
    shutil.rmtree(folder / "scale" / "sae")
    assert main(["train", "scale.yaml"]) == 0
    assert (folder / "scale" / "sae" / "sae.safetensors").read_bytes() == parameters
