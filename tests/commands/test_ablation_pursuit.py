"""Every value of every axis of configs/ablate/pursuit.yaml trains three steps and is saved, at its poles in turn."""

import jax.numpy as jnp
import numpy as np
import pytest
import small_study

from jhsae.commands.ablation.arms import Arm, Designs
from jhsae.commands.ablation.config import as_value
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.sae.apply import reconstruct
from jhsae.training import run
from jhsae.training.checkpoint import load_sae

STUDY = small_study.axes(name="pursuit", tiny=["data.batch=32"])
VALUES = [(axis, name) for axis, values in STUDY.axes.items() for name in values]


@pytest.fixture(scope="module")
def designs(tmp_path_factory):
    """The study in a folder that has the store, on one device: eight compile for much longer."""
    folder = tmp_path_factory.mktemp("study")
    small_study.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(run, "make_mesh", lambda shape: make_mesh(MeshShape(data=1), devices=1))
        yield Designs(STUDY)


@pytest.mark.few(2)
@pytest.mark.parametrize(("axis", "name"), VALUES, ids="-".join)
def test_every_value_trains_and_is_saved(designs, tmp_path, axis, name):
    poles = [pole for pole in STUDY.poles if pole not in as_value(STUDY.axes[axis][name]).not_for]
    arm = Arm(poles[VALUES.index((axis, name)) % len(poles)], ((axis, name),))
    sae, normalizer, _ = load_sae(run.train(small_study.three_steps(designs, arm, tmp_path / "run")))
    x = np.random.default_rng(0).normal(size=(4, small_study.EMBED)).astype(np.float32)
    assert np.isfinite(reconstruct(sae, normalizer, jnp.asarray(x)).x_hat).all()
