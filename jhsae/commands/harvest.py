"""``jhsae harvest``: runs a language model over text and writes activations of it to stores.

Text -> packed token sequences, in random order -> the blocks of the model, once for all layers or hooks -> groups of
shuffled rows on disk, one store for each, whose rows of equal number are of one token. The mesh says how devices and
processes share the model; each process writes some of the groups. An interrupted harvest resumes with the missing
groups and writes the same bytes; a finished one is left alone.
"""

import logging
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jhsae import config as cfg
from jhsae import lm
from jhsae.activations.config import Harvest
from jhsae.activations.fill import WAIT_SECONDS, fill, first_rows
from jhsae.activations.streams import Streams
from jhsae.commands.last_line import command, with_next
from jhsae.data import Framing, Hook, ModelName, Origin, Store, Writer, packed
from jhsae.data.manifest import refuse_existing
from jhsae.data.partial import is_complete
from jhsae.data.storage import Channels
from jhsae.data.stream import Stream
from jhsae.data.text import AbstractText
from jhsae.files.lock import owned
from jhsae.parallel.distributed import barrier, is_main
from jhsae.parallel.memory import check_context
from jhsae.parallel.mesh import make_mesh
from jhsae.parallel.watchdog import Watchdog

logger = logging.getLogger(__name__)
CHANNEL_ROWS = 2**14  # rows that the channels of an int8 store are standardised by


def run(config: Harvest) -> Path:
    """Harvests, prints what was made and returns the folder of the first store. Raises what `harvest` does."""
    folder = harvest(config)
    if is_main():
        lines = [summary(out) for out in config.stores().values()]
        sizes = (f"data.store={folder}", f"sae.embed={Store.open(folder).embed}")
        lines[-1] = with_next(lines[-1], command("jhsae", "train", "scale.yaml", *sizes, "out=runs/scale"))
        print("\n".join(lines), flush=True)
    return folder


def harvest(config: Harvest) -> Path:
    """Writes the stores that are not complete yet.

    Returns:
        The folder of the first store.

    Raises:
        UserError: Input that does not fit together, or a store of another config; before any compute.
    """
    config_hash, folder = cfg.config_hash(config), Path(config.stores()[config.lm.places[0]])
    with Watchdog(), ExitStack() as stack:
        wanted = _unfinished(config.stores(), config_hash)
        for out in wanted.values() if is_main() else ():
            stack.enter_context(owned(out, "harvest"))
        if wanted:
            _harvest(config, config_hash)
        else:
            logger.info(f"{', '.join(config.stores().values())}: finished; nothing to do")
    return folder


def summary(out: str | Path) -> str:
    """A complete store in one line."""
    about = Store.open(out).manifest
    return f"{out}: {about.rows:,} rows of {about.embed} from {about.model}, {about.place.words}"


def _harvest(config: Harvest, config_hash: str) -> None:
    wanted = _unfinished(config.stores(), config_hash)  # again: another process may have written until it was locked
    mesh = make_mesh(config.mesh)
    text: AbstractText = cfg.build(config.text, AbstractText)
    skipped: Counter[str] = Counter()
    documents = text.documents(skipped)
    documents = chain([next(documents)], documents)  # an empty source fails here, before the model is loaded
    loaded = lm.load(config.lm.path, layers=config.lm.blocks, dtype=jnp.dtype(config.lm.dtype), mesh=mesh)
    check_context(loaded.model.config.heads, config.context, config.batch, mesh)
    loaded.model.check_context(config.context)
    vocab = loaded.model.vocab
    tokens, ended = packed(documents, loaded.tokenizer, config.context, config.seed, rows=config.rows, vocab=vocab)
    if skipped:
        logger.info("skipped rows of the text: " + ", ".join(f"{n} {why}" for why, n in sorted(skipped.items())))
    stream = Stream.of(tokens, loaded.tokenizer, config.seed)
    rows = min(config.rows, stream.rows)
    if rows < config.rows:
        logger.warning(f"the text holds {rows} tokens in whole sequences, fewer than rows={config.rows}; storing those")
    on_devices = "float32" if config.dtype == "int8" else config.dtype
    streams = Streams(loaded.model, tuple(wanted), mesh, config.batch, on_devices)
    origin = Origin(
        model=loaded.name,
        layer=config.lm.blocks,
        tokenizer=_fingerprint(loaded),
        dataset=text.describe() | ({"skipped": dict(sorted(skipped.items()))} if skipped else {}),
        documents=ended,
        seed=config.seed,
        config=cfg.to_dict(config),
        config_hash=config_hash,
    )
    writers = _writers(config, wanted, origin, stream, streams, rows)
    fill(writers, stream, streams)
    barrier("written", WAIT_SECONDS)
    for writer in writers if is_main() else ():
        writer.close()
    barrier("sealed", WAIT_SECONDS)


def _unfinished(stores: dict[Hook, str], config_hash: str) -> dict[Hook, str]:
    """The stores to write: those that this very config has not sealed yet. `UserError`: one of another config."""
    wanted = {place: out for place, out in stores.items() if not is_complete(out, config_hash)}
    for out in wanted.values():
        refuse_existing(out, config_hash)
    return wanted


def _writers(
    config: Harvest, wanted: dict[Hook, str], origin: Origin, stream: Stream, streams: Streams, rows: int
) -> list[Writer]:
    """One per place; process 0 creates the stores before the others open them."""
    channels: list[Any] = [None] * len(wanted)
    if config.dtype == "int8":
        channels = [Channels.of(x) for x in first_rows(stream, streams, min(rows, CHANNEL_ROWS))]

    def make() -> list[Writer]:
        return [
            Writer(
                out,
                replace(origin, layer=place.block, hook=place.name),
                stream.tokens,
                rows,
                streams.embed,
                config.dtype,
                channels=channel,
                shuffle_rows=config.shuffle_rows,
                number=jax.process_index(),
                writers=streams.writers,
                resume=True,
            )
            for (place, out), channel in zip(wanted.items(), channels, strict=True)
        ]

    first = make() if is_main() else []
    barrier("created", WAIT_SECONDS)
    return first or make()


def _fingerprint(loaded: lm.LanguageModel) -> dict[str, Any]:
    """The manifest's record of the tokenizer, the positions of its special tokens, and the model."""
    framing = Framing.of(loaded.tokenizer)
    model = ModelName.of(loaded.name, loaded.sha256)
    about = {"name": loaded.name, **lm.fingerprint(loaded.tokenizer)}
    return about | {"first": framing.first, "between": framing.between, "model": model.record()}
