"""``jhsae harvest``: runs a language model over text and writes its residual stream to an activation store.

Text -> packed token sequences, in random order -> the first `layer` blocks of the model -> shuffled rows on
disk. Batches are spread over all local devices; while the devices compute one batch, the host writes the
one before. One process: a harvest over several hosts is not written yet.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int32, Shaped, UInt32
from tqdm import tqdm

from jhsae import config as cfg
from jhsae import lm
from jhsae.config import Slot
from jhsae.data import Origin, Writer, ordinary, pack
from jhsae.data.manifest import refuse_existing
from jhsae.data.text import AbstractText
from jhsae.errors import UserError


@dataclass(frozen=True)
class Source:
    """The language model and the place in it that is read."""

    path: Annotated[str, "a folder, a Hugging Face name, or 'embedded'"]
    layer: Annotated[int, "residual stream after this many blocks; 0 is the scaled embedding"]
    dtype: Annotated[Literal["float32", "bfloat16"], "of the weights and of matrix products"] = "float32"


@dataclass(frozen=True)
class Harvest:
    """The config of one harvest."""

    out: Annotated[str, "the store's folder; must not exist"]
    lm: Annotated[Source, "what is read"]
    text: Annotated[Slot, "the documents, a part of jhsae.data.text"]
    rows: Annotated[int, "activations to store at most; the text may hold fewer"]
    context: Annotated[int, "tokens per sequence, BOS included"] = 128
    batch: Annotated[int, "sequences per forward pass, over all devices"] = 32
    dtype: Annotated[Literal["bfloat16", "float32"], "of the stored activations"] = "bfloat16"
    seed: Annotated[int, "order of documents, sequences and rows"] = 0
    shuffle_rows: Annotated[int, "rows held in memory to be shuffled before they are written"] = 2**18

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("context", 2), ("batch", 1), ("seed", 0), ("shuffle_rows", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least {least}")


def run(config: Harvest) -> Path:
    """Harvests and returns the store's folder. Raises `UserError` before any compute for bad input."""
    config_hash = cfg.config_hash(config)
    refuse_existing(config.out, config_hash)
    text: AbstractText = cfg.build(config.text)
    documents = text.documents()
    documents = chain([next(documents)], documents)  # an empty source ends here, before the model is loaded
    reader = lm.load(config.lm.path, layers=config.lm.layer, dtype=jnp.dtype(config.lm.dtype))
    tokens = pack(documents, reader.tokenizer, config.context, config.seed, rows=config.rows)
    keep = ordinary(tokens, reader.tokenizer)
    rows = min(config.rows, int(keep.sum()))
    if rows < config.rows:
        print(f"the text holds {rows} tokens in whole sequences, fewer than rows={config.rows}; storing those")
    origin = Origin(
        model=reader.name,
        layer=config.lm.layer,
        tokenizer=_fingerprint(reader),
        dataset=text.describe(),
        documents=int((tokens == reader.tokenizer.eos_token_id).sum()),
        seed=config.seed,
        config=cfg.to_dict(config),
        config_hash=config_hash,
    )
    sizes = {"rows": rows, "embed": reader.model.embed, "shuffle_rows": config.shuffle_rows}
    writer = Writer(config.out, origin, tokens, dtype=config.dtype, **sizes)
    with tqdm(total=rows, desc="harvest", unit="row", unit_scale=True) as bar:
        for x, index in _activations(reader.model, config, tokens, keep):
            room = rows - bar.n
            writer.add(x[:room], index[:room])
            bar.update(len(x[:room]))
    store = writer.close()
    print(f"{config.out}: {store.rows} rows of {store.embed} from {reader.name}, layer {config.lm.layer}")
    return Path(config.out)


def _activations(
    model: lm.Gemma2,
    config: Harvest,
    tokens: UInt32[np.ndarray, "sequences context"],
    keep: Bool[np.ndarray, "sequences context"],
) -> Iterator[tuple[Shaped[np.ndarray, "rows embed"], Int32[np.ndarray, "rows 3"]]]:
    """Batch by batch, the rows to store and their (sequence, position, token id); sequences in random order."""
    model, place = _on_devices(model, config.batch)

    @eqx.filter_jit
    def forward(model: lm.Gemma2, ids: jax.Array) -> jax.Array:
        return model.residual(ids, config.lm.layer).astype(config.dtype)

    order = np.random.default_rng(config.seed).permutation(len(tokens))
    running: deque[tuple[np.ndarray, jax.Array]] = deque()
    for start in range(0, len(order), config.batch):
        chosen = order[start : start + config.batch]
        ids = np.zeros((config.batch, config.context), np.int32)
        ids[: len(chosen)] = tokens[chosen]
        running.append((chosen, forward(model, jax.device_put(ids, place))))
        if len(running) == 2:
            yield _rows(*running.popleft(), tokens, keep)
    for chosen, residual in running:
        yield _rows(chosen, residual, tokens, keep)


def _rows(
    chosen: np.ndarray, residual: jax.Array, tokens: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sequence, position = np.nonzero(keep[chosen])
    index = np.stack([chosen[sequence], position, tokens[chosen][sequence, position]], axis=1)
    return np.asarray(residual)[sequence, position], index.astype(np.int32)


def _on_devices(model: lm.Gemma2, batch: int) -> tuple[lm.Gemma2, NamedSharding]:
    """The model on every local device and the sharding of a batch over them; one device where it does not divide."""
    devices = jax.local_devices()
    devices = devices if batch % len(devices) == 0 else devices[:1]
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    arrays, static = eqx.partition(model, eqx.is_array)
    arrays = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
    return eqx.combine(arrays, static), NamedSharding(mesh, PartitionSpec("data"))


def _fingerprint(reader: lm.LanguageModel) -> dict[str, Any]:
    vocabulary = json.dumps(sorted(reader.tokenizer.get_vocab().items())).encode()
    return {
        "name": reader.name,
        "vocab": len(reader.tokenizer),
        "sha256": hashlib.sha256(vocabulary).hexdigest(),
    }
