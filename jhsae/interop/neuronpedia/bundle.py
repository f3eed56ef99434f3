"""Writes a Neuronpedia import bundle from sparse codes: feature dashboards of any trained SAE, without torch.

``<folder>/<model>/<block>-<source set>/{release,model,sourceset,source}.jsonl`` and, gzipped, ``features/batch-N`` and
``activations/batch-N``: what Neuronpedia's importer (apps/webapp/app/api/admin/import) reads. Neuronpedia knows no
hierarchy, so an H-SAE becomes two source sets, parents and atoms, where atom a of expert e has the index
e * atoms + a; a deeper tree becomes one for each level. A root lists its children that fired, and every other feature
that fired its parent, as correlated features.
"""

import gzip
import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from jhsae.data import AbstractNormalizer, Store
from jhsae.features.coactivation import Links, co_activation, no_links
from jhsae.features.decoder import decoder_in_lm_units, directions
from jhsae.features.firings import whole_sequences
from jhsae.features.origin import check_language_model, check_origin
from jhsae.features.spill import SpilledFirings, spilled
from jhsae.features.token_text import token_text
from jhsae.files.checksums import new_folder
from jhsae.interop.neuronpedia.examples import Texts, example_rows
from jhsae.interop.neuronpedia.features import Sheet, feature_rows
from jhsae.interop.neuronpedia.tables import Dashboard, SourceSet, identifier, now, place, short_count, tables
from jhsae.lm import LanguageModel
from jhsae.sae import AbstractSAE


def write(
    folder: str | Path,
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    about: dict[str, Any],
    store: Store,
    rows: int | None,
    model: LanguageModel,
    dashboard: Dashboard = Dashboard(),  # noqa: B008  (immutable)
) -> None:
    """Writes the bundle of `sae` on a held-out store, harvested from `model`, into a new `folder`.

    `rows` bounds how many of the store's rows are used, in whole sequences; None uses all. Codes are in the SAE's own
    units; vectors and logits are in the model's (`decoder_in_lm_units`).

    Raises:
        UserError: the folder exists; a store of another model, layer or width; another language model than the
            store's; rows out of range.
    """
    check_origin(sae, about, store)
    check_language_model(model, store)
    selection = whole_sequences(store, rows)
    sets = source_sets(sae, about, store)
    ranges = [(i, start) for i, s in enumerate(sets) for start in range(s.start, s.stop, dashboard.batch)]
    with new_folder(Path(folder)) as new, TemporaryDirectory(dir=new.path) as spill:
        edges = [*(start for _, start in ranges), sae.features]
        codes = spilled(sae, normalizer, selection, edges, Path(spill))
        texts = Texts(selection.tokens(), token_text(model.tokenizer, range(model.model.vocab)), selection.rows)
        sheets, created = [], now()
        dictionary, unembedding = decoder_in_lm_units(sae, normalizer, store), model.model.unembedding()
        for source_set, links in zip(sets, _links(sae, codes), strict=True):
            own = dictionary[source_set.start : source_set.stop]
            end = (unembedding, texts.words, selection.rows, dashboard, created)
            sheets.append(Sheet(source_set, links, own, directions(own), *end))
            release = identifier(dashboard.release or about["name"])
            found = tables(source_set, model, store.manifest, dashboard, release, selection.sequences, created)
            for name, row in found.items():
                _lines(_target(Path(new.path), source_set) / f"{name}.jsonl", [row])
        for (i, start), stop, records in zip(ranges, edges[1:], codes.parts("writing"), strict=True):
            number = (start - sets[i].start) // dashboard.batch
            _write_batch(_target(Path(new.path), sets[i]), number, sheets[i], texts, start, stop, records)


def source_sets(sae: AbstractSAE, about: dict[str, Any], store: Store) -> list[SourceSet]:
    """The source sets of an SAE: one of a flat SAE, one for each level of a hierarchical one."""
    at, name = place(store.manifest), identifier(about["name"])
    if sae.tree is None:
        whole = f"{name}-{short_count(sae.features)}"
        return [SourceSet(*at, whole, 0, sae.features, f"Residual stream, {sae.features} features.")]
    blocks, levels = sae.tree.blocks, range(len(sae.tree.levels))
    kinds = ["parents", "atoms"] if len(blocks) == 2 else ["parents", *(f"level{level}" for level in levels[1:])]
    names = [f"{name}-{kind}-{short_count(b.end - b.start)}" for kind, b in zip(kinds, blocks, strict=True)]
    texts = [f"Parents of an H-SAE; atom a of parent p is {blocks[1].each} p + a in {names[1]}."]
    for level in levels[1:]:
        what = "Atoms" if len(blocks) == 2 else f"Level {level}"
        text = f"{what} of an H-SAE; the parent of atom i is i // {blocks[level].each} in {names[level - 1]}"
        deeper = (
            f", and its atom a is {blocks[level + 1].each} i + a in {names[level + 1]}" if level < levels[-1] else ""
        )
        texts.append(f"{text}{deeper}.")
    return [SourceSet(*at, name, b.start, b.end, text) for name, b, text in zip(names, blocks, texts, strict=True)]


def _links(sae: AbstractSAE, codes: SpilledFirings) -> list[Callable[[int], Links]]:
    """For each source set, what a feature of it is linked to."""
    if sae.tree is None:
        return [no_links]
    together = co_activation(codes, sae.tree)
    return [together.down, *(partial(together.up, level=level) for level in range(1, len(sae.tree.levels)))]


def _write_batch(
    target: Path, number: int, sheet: Sheet, texts: Texts, start: int, stop: int, records: np.ndarray
) -> None:
    """The features `start` to `stop` of the dictionary, and their examples."""
    source_set, dashboard = sheet.source_set, sheet.dashboard
    cuts = np.searchsorted(records["feature"], np.arange(start, stop + 1))
    own = [records[a:b] for a, b in pairwise(cuts)]
    first = start - source_set.start
    _lines(target / f"features/batch-{number}.jsonl.gz", feature_rows(sheet, first, [r["value"] for r in own]))
    examples = (
        row
        for index, mine in enumerate(own, first)
        for row in example_rows(source_set, index, mine, texts, dashboard, sheet.created)
    )
    if any(len(mine) for mine in own):  # the importer cannot read a file without a line
        _lines(target / f"activations/batch-{number}.jsonl.gz", examples)


def _target(partial: Path, source_set: SourceSet) -> Path:
    return partial / source_set.model / source_set.source


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line; gzipped, with no time in it, where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n" for row in rows
    )
    if path.suffix != ".gz":
        path.write_bytes(b"".join(lines))
        return
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=5, fileobj=file, mtime=0) as packed:
        packed.writelines(lines)
