"""The programs that are planned, lowered from shapes: the step of `jhsae train`, the forward pass of `jhsae harvest`.

Of a training run only the config is read: the batch, the SAE and the statistics of its normaliser are shapes, its
initialisers do not run, and a metric that a teacher would give is one of the same size. The state is donated, sharded
and sized for the platform as in training. Of a harvest only the model's config.json is read: no weights, no text, no
tokenizer. Its weights are sharded as in `jhsae.lm.sharding`, sequences over the batch axes, as in
`jhsae.activations.streams`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jhsae import config as cfg
from jhsae import lm, ops
from jhsae.activations.config import Harvest
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.files import bounded
from jhsae.init import STAND_INS
from jhsae.lm.families import config_of, shapes
from jhsae.lm.sharding import shardings
from jhsae.parallel.mesh import batch_sharding, rows_shards
from jhsae.plan.estimate import Lowered
from jhsae.plan.loops import TileLoad
from jhsae.sae import AbstractSAE, Context
from jhsae.training.config import OPTIMIZER, StageConfig, Train
from jhsae.training.recipe import Recipe
from jhsae.training.sharding import state_shardings
from jhsae.training.step import TrainState


def lower_train(config: Train, stage: StageConfig, mesh: Mesh, platform: str) -> Lowered:
    """Lowers the step that `jhsae train` runs in `stage`.

    Args:
        config: A training config; `data.batch` and `mesh` are those of the plan.
        stage: One of its stages.
        mesh: Abstract or simulated devices.
        platform: ``tpu`` or ``cpu``; kernels are sized for it.
    """
    with ops.sized_for(platform):
        return _lower(config, stage, mesh)


def _lower(config: Train, stage: StageConfig, mesh: Mesh) -> Lowered:
    everywhere = NamedSharding(mesh, PartitionSpec())
    key = jax.random.key(config.seed)
    sae = eqx.filter_eval_shape(lambda key: cfg.build(config.sae, AbstractSAE, key=key), key)
    config = with_abstract_metric(config, sae.embed)
    state = eqx.filter_eval_shape(TrainState.init, sae, cfg.build(config.optimizer, OPTIMIZER), key)
    # abstract: no array can be placed on devices that do not exist
    ready = eqx.filter_eval_shape(lambda: Recipe.of(config, normalizer(config, sae.embed)).stage(stage, sae, mesh))
    batch = jax.ShapeDtypeStruct((config.data.batch, sae.embed), jnp.float32, sharding=batch_sharding(mesh))
    state, static = eqx.partition(state, _is_abstract)
    modules, fixed = eqx.partition(ready.modules, _is_abstract)
    state = jax.tree.map(_sharded, state, state_shardings(state, mesh))
    modules = jax.tree.map(lambda a: _sharded(a, everywhere), modules)

    # eqx.filter_jit treats a ShapeDtypeStruct as static, so the step is compiled inside a jit with its own donation
    def step(state: PyTree, modules: PyTree, batch: Array) -> tuple[PyTree, PyTree]:
        after, metrics = ready.step((eqx.combine(modules, fixed), batch), eqx.combine(state, static))
        return eqx.filter(after, eqx.is_array), metrics

    lowered = jax.jit(step, donate_argnums=0).lower(state, modules, batch)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.sae) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    return Lowered(lowered, _bytes(state.sae), _bytes(state.opt_state), count)


def normalizer(config: Train, embed: int) -> AbstractNormalizer:
    """The config's normaliser with zeros for the statistics of a store."""
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


def with_abstract_metric(config: Train, embed: int) -> Train:
    """Replaces every metric that would be read from a teacher or a store by one of the right size."""

    def replaced(value: Any) -> Any:
        if isinstance(value, cfg.CheckedSlot):
            stand_in = STAND_INS.get(value.target)
            if stand_in is not None:
                return cfg.CheckedSlot({"_target_": stand_in.__name__, "embed": embed}, value.place, stand_in)
            return cfg.CheckedSlot({key: replaced(part) for key, part in value.items()}, value.place, value.target)
        if isinstance(value, Mapping):
            return {key: replaced(part) for key, part in value.items()}
        return type(value)(map(replaced, value)) if isinstance(value, list | tuple) else value

    slots = ("objective", "constraint", "metric", "resampling", "optimizer")
    return replace(config, **{slot: replaced(getattr(config, slot)) for slot in slots})


def tile_load(config: Train, mesh: Mesh, platform: str = "tpu") -> TileLoad | None:
    """The load of a chip if experts are used evenly; None for an SAE without selected indices.

    Args:
        config: that of `lower_train`.
        mesh: that of `lower_train`.
        platform: one whose kernels the config may name.
    """

    def forward(key: Array) -> tuple[Any, Any]:
        found = (sae := cfg.build(config.sae, AbstractSAE, key=key)).forward(jnp.zeros((8, sae.embed)), Context(key))
        return found.codes, found.encoder

    with ops.sized_for(platform):  # only shapes are wanted, and kernels of another platform are refused
        codes, encoder = eqx.filter_eval_shape(forward, jax.random.key(0))
    top = codes.levels()[0]
    if top.indices is None:
        return None
    shards = mesh.shape["expert"] if encoder.size % mesh.shape["expert"] == 0 else 1
    pairs = config.data.batch / rows_shards(mesh) * top.indices.shape[-1]
    return TileLoad(pairs / shards, encoder.size // shards)


def _is_abstract(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _sharded(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _bytes(tree: PyTree) -> float:
    """Bytes of a sharded tree per device."""
    leaves = jax.tree.leaves(tree)
    return float(sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves))


def lower_harvest(config: Harvest, sequences: int, mesh: Mesh, platform: str) -> tuple[Lowered, int]:
    """Lowers the forward pass to the last of the harvested layers.

    Returns:
        The program, and the width of the residual stream.
    """
    layers, dtype = config.lm.layers, jnp.dtype(config.lm.dtype)
    model = shapes(config_of(*read_lm_config(config.lm.path)).first(max(layers)), dtype)
    model = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), model, shardings(model, mesh))
    ids = jax.ShapeDtypeStruct((sequences, config.context), jnp.int32, sharding=batch_sharding(mesh))
    out = NamedSharding(mesh, PartitionSpec(None, ops.ROWS))
    stored = "float32" if config.dtype == "int8" else config.dtype

    def forward(model: lm.AbstractLM, ids: Array) -> Array:
        found = model.residual(ids, layers[0])[None] if len(layers) == 1 else model.residuals(ids, layers)
        return jax.lax.with_sharding_constraint(found.astype(stored), out)

    with ops.sized_for(platform):
        lowered = jax.jit(forward).lower(model, ids)
    leaves = jax.tree.leaves(model)
    own = sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    return Lowered(lowered, float(own), 0.0, sum(leaf.size for leaf in leaves)), model.embed


def read_lm_config(path: str) -> tuple[dict, str]:
    """Reads a model's config.json.

    Args:
        path: ``embedded``, a folder, or a name on the hub, of which only that file is fetched.

    Returns:
        The parsed JSON and the path that it was read from.
    """
    file = (lm.bundled() if path == "embedded" else Path(path)) / "config.json"
    if not file.is_file():
        try:
            file = Path(hf_hub_download(path, "config.json"))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise UserError(
                f"lm.path is {path!r}: no folder with a config.json, and the hub did not give one "
                f"({type(error).__name__}); write harvest.lm.path=FOLDER with the model's config.json in it"
            ) from error
    return bounded.read_object(file), str(file)
