"""The stores and teachers that axes.yaml and pursuit.yaml of configs/ablate read, tiny but for their 256 dimensions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import config
from jhsae.commands.ablation.arms import Arm, Designs
from jhsae.commands.ablation.config import Ablate
from jhsae.data import write_array
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.sae.apply import reconstruct
from jhsae.teacher import Concept, Teacher
from jhsae.training import run
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train

EMBED, PARENTS, CHILDREN, SUB = 256, 3, 4, 22
TINY = ["data.batch=32", "sae.experts=32", "sae.atoms=4"]  # before the values of axes, which may differ
TEACHERS = ("quickstart/teacher", "ablate/teacher-lda", "ablate/teacher-mean", "ablate/teacher-logistic")
STORES = ("quickstart/store/train", "ablate/store-int8")


def make(folder: Path) -> None:
    """Writes the stores and the teachers below ``folder/runs``."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(64, EMBED)) * np.geomspace(0.5, 2, EMBED)).astype(np.float32)
    rows = x[rng.integers(64, size=8192)] + rng.normal(size=(8192, EMBED)).astype(np.float32)
    for name in STORES:
        write_array(folder / "runs" / name, rows)
    for name in TEACHERS:
        teacher(rng).save(folder / "runs" / name)


def teacher(rng: np.random.Generator) -> Teacher:
    """A teacher of random arrays."""

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    children = tuple(Concept(f"k{j}", "k", (1,)) for j in range(CHILDREN))
    return Teacher(
        random(PARENTS, EMBED), random(PARENTS, EMBED), random(PARENTS), random(PARENTS, CHILDREN, EMBED),
        random(PARENTS, SUB, EMBED), random(PARENTS, SUB, EMBED), random(PARENTS, CHILDREN, SUB),
        np.full(PARENTS, CHILDREN, np.int32), np.diag(np.geomspace(0.5, 2, EMBED)).astype(np.float32),
        tuple(Concept(f"n{i}", f"c{i}", (1, 2), children) for i in range(PARENTS)), {"model": "array"}, {},
    )  # fmt: skip


def axes(*words: str, name: str = "axes", tiny: list[str] = TINY) -> Ablate:
    """The study of all axes, or that of another config, tiny."""
    file = config.find(f"ablate/{name}.yaml")
    loaded = config.load(Ablate, file, list(words))
    return config.load(Ablate, file, [f"overrides={[*loaded.overrides, *tiny]}", *words])


def three_steps(designs: Designs, arm: Arm, out: Path) -> Train:
    """The config of an arm, for three steps in all."""
    stages = designs.train(arm).stages
    steps = [3] if len(stages) == 1 else [1, 2]
    return designs.train(arm, (*(f"stages.{i}.steps={n}" for i, n in enumerate(steps)), f"out={out}"))


@contextmanager
def designs_in(folder: Path, study: Ablate) -> Iterator[Designs]:
    """The study in a folder that has what its config reads, on one device: eight compile for much longer."""
    make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(run, "make_mesh", lambda shape: make_mesh(MeshShape(data=1), devices=1))
        yield Designs(study)


def check_trains(designs: Designs, arm: Arm, out: Path) -> None:
    """Three steps of an arm, saved, loaded again, and finite on new rows."""
    sae, normalizer, _ = load_sae(run.train(three_steps(designs, arm, out)))
    x = np.random.default_rng(0).normal(size=(4, EMBED)).astype(np.float32)
    assert np.isfinite(reconstruct(sae, normalizer, jnp.asarray(x)).x_hat).all()
