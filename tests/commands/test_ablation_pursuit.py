"""Every value of every axis of configs/ablate/pursuit.yaml trains three steps and is saved, at its poles in turn."""

import pytest
import small_study

from jhsae.commands.ablation.arms import Arm
from jhsae.commands.ablation.config import as_value

STUDY = small_study.axes(name="pursuit", tiny=["data.batch=32"])
VALUES = [(axis, name) for axis, values in STUDY.axes.items() for name in values]


@pytest.fixture(scope="module")
def designs(tmp_path_factory):
    with small_study.designs_in(tmp_path_factory.mktemp("study"), STUDY) as designs:
        yield designs


@pytest.mark.few(2)
@pytest.mark.parametrize(("axis", "name"), VALUES, ids="-".join)
def test_every_value_trains_and_is_saved(designs, tmp_path, axis, name):
    poles = [pole for pole in STUDY.poles if pole not in as_value(STUDY.axes[axis][name]).not_for]
    small_study.check_trains(
        designs, Arm(poles[VALUES.index((axis, name)) % len(poles)], ((axis, name),)), tmp_path / "run"
    )
