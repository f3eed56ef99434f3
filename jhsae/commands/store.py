"""``jhsae store``: your own activations, from files of arrays, as an activation store.

Rows are read block by block, shuffled and written as a harvest writes them; an interrupted write resumes with the
missing groups. Token ids, positions and the text of tokens are kept where they are given: evaluate and browse then show
contexts.
"""

import json
import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from jhsae import config as cfg
from jhsae import data
from jhsae.commands.last_line import command, with_next
from jhsae.data.from_array import write_blocks
from jhsae.data.manifest import refuse_existing
from jhsae.data.partial import is_complete
from jhsae.data.places import Places, places_of
from jhsae.interop.activation_files import Source, open_source
from jhsae.ranges import Count, Natural, Seed, Words, ranged

logger = logging.getLogger(__name__)


@ranged
@dataclass(frozen=True)
class Store:
    """The files, and what is known of their rows."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset({"unpickle"})

    source: Annotated[
        Words,
        "a .npy, .pt, .safetensors or .parquet of [rows, embed] or [docs, positions, embed], or a folder of shards",
    ]
    out: Annotated[Words, "the store to write"]
    key: Annotated[Words | None, "tensor or column of the activations; null: the only one that can be"] = None
    tokens: Annotated[Words | None, "token id of each row: a file, or a tensor or column of the source"] = None
    positions: Annotated[
        Words | None,
        "position of each row in its document, as tokens; a new document begins where it does not rise; -1: left out",
    ] = None
    text: Annotated[Words | None, "text of each row's token, as tokens; also lines of a .txt or a list of a .json"] = (
        None
    )
    model: Annotated[Words | None, "language model that they come from, as evaluate is given it by lm=..."] = None
    layer: Annotated[Natural, "number of its blocks that have run"] = 0
    dtype: Annotated[Literal["float32", "bfloat16", "int8"], "of the stored rows"] = "float32"
    seed: Annotated[Seed, "order of the rows"] = 0
    shuffle_rows: Annotated[Count | None, "rows that are shuffled together; null: as many as make 1 GiB"] = None
    unpickle: Annotated[bool, "allow torch.load(weights_only=True) for .pt files"] = False


def run(config: Store) -> Path:
    """Writes the store, or leaves a complete one alone, prints what was made, and returns its folder.

    Raises:
        UserError: Files that cannot be read or do not fit each other, rows that are not finite, an `out` that exists.
    """
    names = [name for name in (config.tokens, config.positions, config.text) if name is not None]
    source = open_source(config.source, config.key, names, config.unpickle)
    places = _places(config, source)
    origin = _origin(config, source, places)
    if is_complete(config.out, origin.config_hash):
        logger.info(f"{config.out} is finished; nothing to do")
    else:
        refuse_existing(config.out, origin.config_hash)
        options: dict[str, Any] = {"dtype": config.dtype, "shuffle_rows": config.shuffle_rows, "resume": True}
        write_blocks(config.out, source.blocks, source.embed, places, origin, **options)
    print(_last_line(config), flush=True)
    return Path(config.out)


def _places(config: Store, source: Source) -> Places:
    """The documents, positions and tokens of the rows."""
    found = {
        word: None if name is None else source.labels(name, word, config.unpickle)
        for word, name in (("tokens", config.tokens), ("positions", config.positions), ("text", config.text))
    }
    if found["positions"] is None:
        found["positions"] = source.positions
    places = places_of(source.axes, **found)
    if places.known and places.tokens.shape[1] == 1:
        logger.warning(
            f"{config.source}: every row is a document of its own, so that contexts are single tokens; write "
            "positions=..., or store [docs, positions, embed]"
        )
    return places


def _origin(config: Store, source: Source, places: Places) -> data.Origin:
    """What the manifest says of the rows; its hash is that of the config, the files and the places."""
    files = source.fingerprint()
    index = sha256(places.index.tobytes()).hexdigest()
    content = [cfg.config_hash(config), files, index, places.vocabulary]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return data.Origin(
        model=config.model or "array",
        layer=config.layer,
        tokenizer={} if places.vocabulary is None else {"vocabulary": places.vocabulary},
        dataset={"source": "array", "name": Path(config.source).name, **places.dataset(), "files": files},
        documents=places.tokens.shape[0] if places.known or len(source.axes) == 2 else 0,
        seed=config.seed,
        config=cfg.to_dict(config),
        config_hash=sha256(text.encode()).hexdigest()[:12],
    )


def _last_line(config: Store) -> str:
    """The store in one line, and how it is trained on."""
    about = data.Store.open(config.out).manifest
    text = f", {about.sequences:,} documents" if about.context > 1 else ""
    known = f", {about.dataset['tokens']} of tokens" if "tokens" in about.dataset else ""
    made = f"{config.out}: {about.rows:,} rows of {about.embed}{text}{known}"
    following = command("jhsae", "train", "scale.yaml", f"data.store={config.out}", f"sae.embed={about.embed}")
    return with_next(made, f"{following} out=runs/scale")
