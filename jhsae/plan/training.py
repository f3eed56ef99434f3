"""The training step of `jhsae train`, compiled from shapes for devices that need not exist.

Nothing is read from disk but the config: the batch, the SAE and the statistics of its normaliser are shapes, its
initialisers do not run, and a metric that a teacher would give is one of the same size. The state is donated, sharded
and sized for the platform as in training.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jhsae import config as cfg
from jhsae import ops
from jhsae.codes import TreeCodes
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.init import teacher_metric, teacher_unembedding_metric
from jhsae.metric import Whitened
from jhsae.parallel.mesh import batch_sharding, rows_shards
from jhsae.plan.loops import Tiles
from jhsae.plan.program import Lowered
from jhsae.sae import AbstractSAE
from jhsae.training.config import OPTIMIZER, StageConfig, Train
from jhsae.training.recipe import Recipe
from jhsae.training.sharding import state_shardings
from jhsae.training.step import TrainState
from jhsae.usage import Context

FROM_TEACHER = (teacher_metric, teacher_unembedding_metric)


def lower(config: Train, stage: StageConfig, mesh: Mesh, platform: str) -> Lowered:
    """The step that `jhsae train` runs in `stage`, on shapes placed on `mesh`."""
    with ops.sized_for(platform):
        return _lower(config, stage, mesh)


def _lower(config: Train, stage: StageConfig, mesh: Mesh) -> Lowered:
    everywhere = NamedSharding(mesh, PartitionSpec())
    key = jax.random.key(config.seed)
    sae = eqx.filter_eval_shape(lambda key: cfg.build(config.sae, AbstractSAE, key=key), key)
    config = without_teacher(config, sae.embed)
    state = eqx.filter_eval_shape(TrainState.init, sae, cfg.build(config.optimizer, OPTIMIZER), key)
    # as shapes: nothing can be put on devices that do not exist
    ready = eqx.filter_eval_shape(lambda: Recipe.of(config, normalizer(config, sae.embed)).stage(stage, sae, mesh))
    batch = jax.ShapeDtypeStruct((config.data.batch, sae.embed), jnp.float32, sharding=batch_sharding(mesh))
    state, static = eqx.partition(state, _is_shape)
    modules, fixed = eqx.partition(ready.modules, _is_shape)
    state = jax.tree.map(_placed, state, state_shardings(state, mesh))
    modules = jax.tree.map(lambda a: _placed(a, everywhere), modules)

    # eqx.filter_jit takes a shape for a constant, so that the step is compiled inside a jit with its own donation
    def step(state: PyTree, modules: PyTree, batch: Array) -> tuple[PyTree, PyTree]:
        after, metrics = ready.step((eqx.combine(modules, fixed), batch), eqx.combine(state, static))
        return eqx.filter(after, eqx.is_array), metrics

    lowered = jax.jit(step, donate_argnums=0).lower(state, modules, batch)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.sae) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    return Lowered(lowered, _bytes(state.sae), _bytes(state.opt_state), count)


def normalizer(config: Train, embed: int) -> AbstractNormalizer:
    """The config's normaliser with zeros in the place of the statistics that a store would give."""
    part = cfg.build(config.data.normalize, AbstractNormalizer)
    return replace(part, **{name: jnp.zeros(shape) for name, shape in part.shapes(embed).items()})


def stage_of(config: Train, name: str | None) -> StageConfig:
    """The stage of that name; without one, the longest. Raises `UserError` for a name that no stage has."""
    names = [stage.name for stage in config.stages]
    if name is None:
        return max(config.stages, key=lambda stage: stage.steps)
    if name not in names:
        raise UserError(f"--stage is {name}, expected one of {', '.join(names)}")
    return config.stages[names.index(name)]


def without_teacher(config: Train, embed: int) -> Train:
    """The config with a metric of the right size wherever one would be read from a teacher's folder."""

    def replaced(value: Any) -> Any:
        if isinstance(value, cfg.CheckedSlot):
            if value.target in FROM_TEACHER:
                return cfg.CheckedSlot({"_target_": "some_metric", "embed": embed}, value.place, some_metric)
            return cfg.CheckedSlot({key: replaced(part) for key, part in value.items()}, value.place, value.target)
        if isinstance(value, Mapping):
            return {key: replaced(part) for key, part in value.items()}
        return type(value)(map(replaced, value)) if isinstance(value, list | tuple) else value

    slots = ("objective", "constraint", "metric", "resampling", "optimizer")
    return replace(config, **{slot: replaced(getattr(config, slot)) for slot in slots})


def some_metric(embed: int) -> Whitened:
    """A metric for shapes alone."""
    return Whitened(jnp.eye(embed))


def tiles_of(config: Train, mesh: Mesh) -> Tiles | None:
    """What a chip does of the selected pairs if experts are used evenly; None for an SAE that selects none."""

    def forward(key: Array) -> tuple[Any, Any]:
        found = (sae := cfg.build(config.sae, AbstractSAE, key=key)).forward(jnp.zeros((8, sae.embed)), Context(key))
        return found.codes, found.encoder

    codes, encoder = eqx.filter_eval_shape(forward, jax.random.key(0))
    top = codes.parents if isinstance(codes, TreeCodes) else codes
    if top.indices is None:
        return None
    shards = mesh.shape["expert"] if encoder.size % mesh.shape["expert"] == 0 else 1
    pairs = config.data.batch / rows_shards(mesh) * top.indices.shape[-1]
    return Tiles(pairs / shards, encoder.size // shards)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _placed(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _bytes(tree: PyTree) -> float:
    """Per device."""
    leaves = jax.tree.leaves(tree)
    return float(sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves))
