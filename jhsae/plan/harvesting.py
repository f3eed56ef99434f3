"""The forward pass of `jhsae harvest`, compiled from a model's config.json alone: no weights, no text, no tokenizer.

The weights are laid out as `jhsae.lm.sharding` says, sequences over the batch axes, as in `jhsae.activations.streams`.
"""

from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jhsae import lm, ops
from jhsae.activations.config import Harvest
from jhsae.errors import UserError
from jhsae.files import bounded
from jhsae.lm.families import config_of, shapes
from jhsae.lm.sharding import shardings
from jhsae.parallel.mesh import batch_sharding, rows_shards
from jhsae.plan.planned import Row, planned
from jhsae.plan.program import Lowered
from jhsae.plan.topology import Topology

STORED = {"bfloat16": 2, "float32": 4, "int8": 1}
DAY = 86_400


def plan_harvest(config: Harvest, mesh: Mesh, where: Topology) -> Row:
    """One forward pass on the mesh, and the whole harvest if every token of it were stored."""
    shards = rows_shards(mesh)
    sequences = -(-config.batch // shards) * shards
    lowered, embed = lower(config, sequences, mesh, where.platform)
    tokens = sequences * config.context
    row = planned(lowered, where, mesh, tokens)
    rate, layers = row["tokens_per_second"], len(config.lm.layers)
    return row | {
        "rows": config.rows,
        "days": rate and config.rows / rate / DAY,
        "output_bytes_per_second": rate and rate * embed * layers * STORED[config.dtype],
    }


def lower(config: Harvest, sequences: int, mesh: Mesh, platform: str) -> tuple[Lowered, int]:
    """The forward pass to the layers that are read, on shapes, and the size of a residual stream."""
    layers, dtype = config.lm.layers, jnp.dtype(config.lm.dtype)
    model = shapes(config_of(*settings_of(config.lm.path)).first(max(layers)), dtype)
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
    own = sum(leaf.dtype.itemsize * prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    return Lowered(lowered, float(own), 0.0, sum(leaf.size for leaf in leaves)), model.embed


def settings_of(path: str) -> tuple[dict, str]:
    """A model's parsed config.json and where it is from; of a hub name that file alone is fetched."""
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
