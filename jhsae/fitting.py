"""`fit`: train an SAE on the rows of an array, for scripts and notebooks. The same step and loop as ``jhsae train``."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jhsae.constraint import AbstractConstraint, ProjectAndRenormalize
from jhsae.data import AbstractNormalizer, Identity
from jhsae.errors import UserError
from jhsae.logs import NoLog
from jhsae.loop import Phase, run_phases
from jhsae.losses import AbstractTerm, Objective, ParentsOnly, SquaredError
from jhsae.mesh import MeshShape, check_batch, make_mesh, shard_state
from jhsae.optimizer import adam
from jhsae.sae import AbstractSAE, HierarchicalSAE
from jhsae.schedule import AbstractSchedule, WarmupCosine, as_schedule
from jhsae.step import Parts, TrainState, make_step


def fit(
    sae: AbstractSAE,
    x: Float[np.ndarray, "rows embed"] | Float[Array, "rows embed"],
    *,
    steps: int,
    batch: int = 1024,
    learning_rate: AbstractSchedule | float | None = None,
    objective: Objective | None = None,
    constraint: AbstractConstraint | None = None,
    normalizer: AbstractNormalizer | None = None,
    clip: float | None = 1.0,
    seed: int = 0,
    mesh: MeshShape | None = None,
) -> tuple[AbstractSAE, list[dict[str, Any]]]:
    """Trains `sae` on the rows of an array with the same loop, for scripts; returns it and the logged metrics.

    Defaults: squared error (plus 0.1 parents-only for a hierarchical SAE), warmup-cosine to 1e-3, unit decoder rows
    by projection and renormalisation, one device. ``mesh=MeshShape()`` shares the batch among all, ``MeshShape(2, 4)``
    between 2, each with 4 that share the experts.
    """
    rows = np.asarray(x)
    if rows.ndim != 2 or rows.shape[1] != sae.embed:
        raise UserError(f"x has shape {rows.shape}, expected (rows, {sae.embed}) to fit this SAE")
    batch = min(batch, len(rows))
    if learning_rate is None:
        learning_rate = WarmupCosine(1e-3, warmup=steps // 20, steps=steps)
    parts = Parts(
        objective or default_objective(sae),
        as_schedule(learning_rate),
        constraint or ProjectAndRenormalize(),
        normalizer or Identity(),
    )
    direction = adam()
    devices = make_mesh(MeshShape(data=1), devices=1) if mesh is None else make_mesh(mesh)
    check_batch(batch, devices)
    log = NoLog()
    phase = Phase("fit", steps, make_step(direction, clip=clip, mesh=devices), parts)
    state = shard_state(TrainState.init(sae, direction, jax.random.key(seed)), devices)
    state = run_phases(
        state, [phase], _shuffled(rows, batch, seed), devices, log, log_every=max(1, steps // 20), label="fit"
    )
    return state.sae.settled(state.sae.corrected(state.usage, steps)), log.rows


def default_objective(sae: AbstractSAE) -> Objective:
    """Squared error, and parents-only reconstruction at 0.1 for a hierarchical SAE."""
    terms: dict[str, AbstractTerm] = {"reconstruction": SquaredError()}
    if isinstance(sae, HierarchicalSAE):
        return Objective(terms | {"parents_only": ParentsOnly()}, {"parents_only": 0.1})
    return Objective(terms)


def _shuffled(rows: np.ndarray, batch: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - batch + 1, batch):
            yield rows[order[start : start + batch]]
