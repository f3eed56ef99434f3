"""The data of a feature browser's page: numbers, tokens, contexts, and a search index.

Latents are named as in the page's addresses: ``f7`` of a flat SAE; of a hierarchical one ``e12``, its atom ``e12/a3``
and, in a deeper tree, ``e12/a3/a1`` below that. Numbers are rounded, and tokens, sequences and latents are indices into
the page's own lists.
"""

from dataclasses import dataclass

import numpy as np

from jhsae import lm
from jhsae.browser.contexts import Reader, Window
from jhsae.browser.entries import Entries, label
from jhsae.browser.pieces import Pieces, Sequences
from jhsae.browser.tables import Json, densities, rounded, search_index
from jhsae.browser.text import Text, text_of
from jhsae.data import Store
from jhsae.data.normalize import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.features.contexts import frequent_children, spread_features
from jhsae.features.decoder import decoder_in_lm_units, typical_rows
from jhsae.features.firings import Firings, firing_table
from jhsae.features.latents import latent_statistics, token_profile
from jhsae.features.token_text import word_ids
from jhsae.files.escaping import visible
from jhsae.sae import AbstractSAE, Forest

BINS = 24


@dataclass(frozen=True)
class Limits:
    """How much of everything a page shows.

    Args:
        features: experts (or flat features), evenly spaced in frequency rank; None for all that fired.
        atoms: atoms per expert, the most frequent ones; None for all that fired.
        examples: strongest contexts per latent.
        spread: weaker contexts per latent, at evenly spaced ranks.
        window: tokens of a context on either side of the firing one.
        logits: tokens raised most per latent, and as many lowered most.
        neighbours: nearest decoder directions per latent.
    """

    features: int | None
    atoms: int | None
    examples: int
    spread: int
    window: Window
    logits: int
    neighbours: int


def gather(
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    store: Store,
    rows: int,
    model: lm.LanguageModel | None,
    names: dict[int, str],
    limits: Limits,
) -> Json:
    """The data of a page.

    Args:
        sae: a trained SAE.
        normalizer: its fitted input normaliser.
        store: held-out activations of the SAE's model and layer, of which the first `rows` rows are measured.
        rows: how many.
        model: the language model of the store, for tokens and logits; None for those that the store keeps, and none.
        names: of experts or flat features, by index.
        limits: how much of everything is shown.

    Raises:
        UserError: no latent fired.
    """
    fired = firing_table(sae, normalizer, store, rows)
    statistics = latent_statistics(fired, BINS)
    tree, occupied = sae.tree, np.asarray(sae.occupied)
    shown = _shown(statistics.frequency, tree, limits)
    if not len(shown):
        raise UserError(f"no latent fired on the {rows} rows of {store.path}; was the SAE trained on such activations?")
    index = store.index(0, rows)
    text = text_of(store, index, model)
    pieces = Pieces(text.text, text.special)
    sequences = Sequences(text.tokens, index, pieces)
    profile = token_profile(fired, text.ids, text.vocab)
    entries = Entries(fired, statistics, profile, shown, tree, occupied, pieces, sequences, text.known)
    firing = entries.firing(Reader(index, text.tokens.shape[1], limits.window), limits.examples, limits.spread)
    unembedding = None if model is None else model.model.unembedding()
    dictionary = decoder_in_lm_units(sae, normalizer, store)
    writing = entries.writing(dictionary, unembedding, limits.logits, limits.neighbours)
    return {
        "latents": [
            {"id": label(i, tree), "name": visible(names[i]) if names.get(i) else None} | where | what
            for i, where, what in zip(shown.tolist(), firing, writing, strict=True)
        ],
        "search": _search(fired, text, shown),
        "unit": "token" if text.known else "row",
        "density": densities(_kinds(statistics.frequency, tree, occupied)),
        "rows": rows,
        "window": [*limits.window],
        "norm": rounded(np.median(np.linalg.norm(typical_rows(store), axis=1)), 4),
        **sequences.written(),
        **pieces.written(profile.occurrences if text.known else None),
    }


def _search(fired: Firings, text: Text, shown: np.ndarray) -> Json:
    """The search index over the words of the tokens; empty where no token is known."""
    if not text.known:
        return {}
    words, of_token = word_ids(text.text(range(text.vocab)))
    return search_index(token_profile(fired, of_token[text.ids], len(words)), words, shown)


def _shown(frequency: np.ndarray, tree: Forest | None, limits: Limits) -> np.ndarray:
    """Experts (or flat features), then level by level the shown children of what is shown."""
    top = tree.roots if tree else len(frequency)
    level = sorted(spread_features(frequency[:top], top if limits.features is None else limits.features))
    shown = list(level)
    while tree and level:
        level = [a for i in level for a in sorted(frequent_children(tree, i, frequency, limits.atoms))]
        shown += level
    return np.asarray(shown, np.int64)


def _kinds(frequency: np.ndarray, tree: Forest | None, occupied: np.ndarray) -> dict[str, np.ndarray]:
    """The frequencies of each kind of latent, empty slots left out."""
    if tree is None:
        return {"latents": frequency[occupied]}
    below = ["atoms"] if len(tree.levels) == 2 else [f"level-{level} atoms" for level in range(1, len(tree.levels))]
    blocks = zip(["experts", *below], tree.blocks, strict=True)
    return {kind: frequency[b.start : b.end][occupied[b.start : b.end]] for kind, b in blocks}
