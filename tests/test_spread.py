"""One training run on every mesh: the same losses, metrics and usage."""

from functools import cache

import jax
import numpy as np
import pytest
from reference.filled import filled

from jhsae.constraint import ProjectAndRenormalize
from jhsae.data import UnitNorm
from jhsae.errors import UserError
from jhsae.losses import AuxK, CrossOrthogonality, L1All, Objective, ParentsOnly, Prefix, SquaredError
from jhsae.optimizer import adam
from jhsae.parallel.mesh import MeshShape, make_mesh, shard_batch
from jhsae.sae import FlatSAE, HierarchicalSAE, PursuitSAE
from jhsae.schedule import Constant
from jhsae.sparsify import BatchTopK, GumbelTopK, MeanL0, TopK
from jhsae.training.fit import fit
from jhsae.training.sharding import shard_state
from jhsae.training.step import StageModules, TrainState, make_step

EMBED, BATCH, STEPS = 16, 32, 50
MESHES = {"2 x 1": (2, 1), "8 x 1": (8, 1), "4 x 2": (4, 2), "2 x 4": (2, 4), "1 x 8": (1, 8)}


def hierarchical(key):
    route = GumbelTopK(4, Constant(0.1))
    return HierarchicalSAE(EMBED, 64, 2, 3, route, TopK(1), biases=("encoder", "decoder"), key=key)


def flat(sparsifier):
    return lambda key: FlatSAE(EMBED, 128, sparsifier, kernel="tiles", key=key)


def pursuit(key):
    return PursuitSAE(EMBED, (32, 3), MeanL0(4.0), kernel="tiles", key=key)


TREE = {"squares": SquaredError(), "parents": ParentsOnly(), "l1": L1All(), "cross": CrossOrthogonality()}
FLAT = {"squares": SquaredError(), "auxk": AuxK(k=8)}
SAES = {
    "H-SAE": (hierarchical, Objective(TREE, {"l1": 1e-3})),
    "TopK": (flat(TopK(4)), Objective({"squares": SquaredError()})),
    "TopK, AuxK": (flat(TopK(4)), Objective(FLAT, {"auxk": 0.1})),
    "BatchTopK": (flat(BatchTopK(4.0)), Objective(FLAT, {"auxk": 0.1})),
    "pursuit": (pursuit, Objective({"squares": SquaredError(), "prefix": Prefix()}, {"prefix": 0.5})),
}


def train(name, shape):
    """(metrics of every step, last state) of one SAE on a mesh."""
    make, objective = SAES[name]
    mesh = make_mesh(MeshShape(*shape), devices=shape[0] * shape[1])
    modules = StageModules(objective, Constant(1e-3), ProjectAndRenormalize(), UnitNorm())
    sae = filled(lambda: make(jax.random.key(0)), scale=0.5)
    step = make_step(adam(), dead_window=3, mesh=mesh)
    state = shard_state(TrainState.init(sae, adam(), jax.random.key(0)), mesh)
    rng, rows = np.random.default_rng(0), []
    for _ in range(STEPS):
        batch = shard_batch(rng.normal(size=(BATCH, EMBED)).astype(np.float32), mesh)
        state, metrics = step((modules, batch), state)
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows, state


alone = cache(lambda name: train(name, (1, 1)))
ON_MESHES = [
    pytest.param(name, words, marks=[] if words == "4 x 2" or (name, words) == ("H-SAE", "1 x 8") else pytest.mark.slow)
    for name in SAES
    for words in MESHES
]


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "words"), ON_MESHES)
def test_fifty_steps_are_the_same_on_every_mesh(name, words):
    want, end = alone(name)
    got, state = train(name, MESHES[words])
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        for metric in b:
            message = f"{metric} at step {i}"
            np.testing.assert_allclose(a[metric], b[metric], rtol=1e-5, atol=1e-5, err_msg=message)
    np.testing.assert_array_equal(state.usage.since_fired, end.usage.since_fired)
    np.testing.assert_array_equal(state.usage.fires, end.usage.fires)


@pytest.mark.slow
def test_fit_takes_a_mesh():
    x = np.random.default_rng(0).normal(size=(256, EMBED)).astype(np.float32)
    sae = filled(lambda: hierarchical(jax.random.key(0)), scale=0.5)
    alone, together = (fit(sae, x, steps=5, batch=BATCH, mesh=mesh)[1] for mesh in (None, MeshShape(4, 2)))
    for a, b in zip(together, alone, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    with pytest.raises(UserError, match=r"data\.batch is 30, which 4 devices cannot share; write a multiple of 4"):
        fit(sae, x, steps=5, batch=30, mesh=MeshShape(4, 2))
