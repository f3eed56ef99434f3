"""Every value of every axis of configs/ablate/axes.yaml builds, trains three steps and is saved, on tiny sizes."""

import pytest
import small_study

from jhsae.commands.ablation.arms import Arm, arms_of, check_builds
from jhsae.commands.ablation.config import ALL, as_value

AXES = small_study.axes().axes
POLES = list(small_study.axes().poles)
VALUES = [(axis, name) for axis, values in AXES.items() for name in values]


def poles_of(axis, name):
    """The poles at which a value applies."""
    excluded = as_value(AXES[axis][name]).not_for
    return [] if ALL in excluded else [pole for pole in POLES if pole not in excluded]


@pytest.fixture(scope="module")
def designs(tmp_path_factory):
    with small_study.designs_in(tmp_path_factory.mktemp("study"), small_study.axes()) as designs:
        yield designs


def test_all_axes_of_the_originals_are_there():
    """28 axes, of which tying is three, and the optimizer three too; the method of the top k is one more."""
    assert len(AXES) == 28 + 2 + 2 + 1 and all(AXES.values())
    nowhere = [value for value in VALUES if not poles_of(*value)]
    assert nowhere == [("data", "world"), ("data", "unembedding_rows")]


def test_one_value_in_six_builds(designs):
    """At one pole each; all values and poles: the test below, which is slow."""
    for axis, name in VALUES[::6]:
        for pole in poles_of(axis, name)[:1]:
            check_builds(designs, Arm(pole, ((axis, name),)))


@pytest.mark.slow
def test_every_value_builds_at_every_pole(designs):
    arms, left = arms_of(designs)
    assert len(arms) > 400 and {one.pole for one in left} == set(POLES)


BY_DEFAULT = 6  # of the values that the shorter lists of conftest leave, one in as many; the others are slow


def trained(place, value):
    return pytest.param(*value, id="-".join(value), marks=[pytest.mark.slow] if place % BY_DEFAULT else [])


@pytest.mark.few(1)
@pytest.mark.parametrize(("axis", "name"), [trained(place, value) for place, value in enumerate(VALUES)])
def test_every_value_trains_and_is_saved(designs, tmp_path, axis, name):
    """Poles take turns, so that each sees a part of the values."""
    poles = poles_of(axis, name)
    if not poles:
        return  # which the axis explains
    arm = Arm(poles[VALUES.index((axis, name)) % len(poles)], ((axis, name),))
    small_study.check_trains(designs, arm, tmp_path / "run")
