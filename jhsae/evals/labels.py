"""Classes of the tokens of a store: what purity, probing and absorption are measured against without a ground truth.

A label file is JSON lines, one label each: of a token wherever it stands, ``{"token": 512, "class": "animal"}``, or of
one place, ``{"sequence": 3, "position": 7, "class": "animal"}`` (0-based, as in ``store.index``); one kind per file.
``"word": "dog"`` beside a token says of which word it is a form. WordNet's own labels are `wordnet_labels`: the
lexicographer file of the first noun sense of every word that is one token of the model (``animal``, ``food``, ...).

What is chosen on some words is scored on others: a latent that reads a single word would else look like its class. So
rows are split by word type (`RowLabels.half`), and the null deals the classes to other words (`RowLabels.permuted`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from jhsae.data.wordnet import read_wndb
from jhsae.errors import UserError
from jhsae.files.bounded import LINES_BYTES, read_bytes, read_lines
from jhsae.files.forms import TEXT, check, whole
from jhsae.ranges import INT32
from jhsae.teacher import Concept, from_wordnet, single_tokens

NO_CLASS = -1
LEAST_WORDS = 2  # of a class: one to choose on, one to score on
PLACE = whole(0, INT32)
FORM = {"class": TEXT, "token?": PLACE, "sequence?": PLACE, "position?": PLACE, "word?": TEXT}
FORMAT = '{"token": 512, "class": "animal"} or {"sequence": 3, "position": 7, "class": "animal"}'


@dataclass(frozen=True, eq=False)
class RowLabels:
    """The class and the word type of every measured row of a store.

    Args:
        names: of the classes.
        classes: of each row a place in `names`, or `NO_CLASS`.
        words: of each row the number of its word type.
    """

    names: tuple[str, ...]
    classes: Int32[np.ndarray, " rows"]
    words: Int64[np.ndarray, " rows"]

    def present(self) -> Int64[np.ndarray, " present"]:
        """The classes that some row has."""
        return np.unique(self.classes[self.classes != NO_CLASS]).astype(np.int64)

    def half(self, seed: int) -> Bool[np.ndarray, " rows"]:
        """True for the rows of half of the word types of every class: to choose and fit on; the rest is scored.

        Of an odd number of words it is the smaller half.
        """
        units, _, classes = self._units()
        words, first = np.unique(units, return_index=True)
        own = classes[first]
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(words))
        parts = [order[own[order] == c] for c in np.unique(own)]
        return np.isin(self.words, [word for part in parts for word in words[part[: len(part) // 2]]])

    def permuted(self, seed: int) -> "RowLabels":
        """The same rows with the classes of the word types dealt at random among them; sizes in word types stay."""
        _, rows_of, classes = self._units()
        dealt = np.random.default_rng(seed).permutation(classes).astype(np.int32)
        new = self.classes.copy()
        new[self.classes != NO_CLASS] = dealt[rows_of]
        return replace(self, classes=new)

    def _units(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every pair of a word type and a class that occurs: its word, the pair of each labelled row, its class.

        Sorted by word; of a word with several classes (labels of places) the one with most rows comes first.
        """
        labelled = self.classes != NO_CLASS
        keys = np.stack([self.words[labelled], self.classes[labelled].astype(np.int64)])
        pairs, inverse, counts = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
        order = np.lexsort((pairs[1], -counts, pairs[0]))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return pairs[0][order], rank[inverse.reshape(-1)], pairs[1][order]


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels before they meet a store.

    Args:
        names: of the classes.
        tokens: token id -> class.
        places: (sequence, position) -> class.
        words: token id -> the word type that it is a form of, by any number; a token that is not here is its own.
        source: the file or the ontology, for messages.
    """

    names: tuple[str, ...]
    tokens: Mapping[int, int]
    places: Mapping[tuple[int, int], int]
    words: Mapping[int, int]
    source: str

    def on(self, index: Int[np.ndarray, "rows 3"]) -> RowLabels:
        """The labels of rows, ``store.index(0, rows)``. A class of fewer than `LEAST_WORDS` word types there has none.

        Raises:
            UserError: fewer than two classes are left.
        """
        rows = index.astype(np.int64)
        by_place = rows[:, 0] * (INT32 + 1) + rows[:, 1]
        places = {s * (INT32 + 1) + p: c for (s, p), c in self.places.items()}
        classes = _looked_up(places, by_place, _looked_up(self.tokens, rows[:, 2], np.full(len(rows), NO_CLASS)))
        found = RowLabels(self.names, classes.astype(np.int32), _looked_up(self.words, rows[:, 2], rows[:, 2]))
        labelled = int(np.sum(classes != NO_CLASS))
        own = found._units()[2]
        kept = np.flatnonzero(np.bincount(own, minlength=len(self.names)) >= LEAST_WORDS)
        if len(kept) < 2:
            raise UserError(
                f"{self.source} gives {labelled:,} of {len(rows):,} rows a class, and {len(kept)} of its "
                f"{len(self.names)} classes at least {LEAST_WORDS} words there, expected two such classes; write "
                "labels that were made with the tokenizer of this store, or measure more rows"
            )
        return replace(found, classes=np.where(np.isin(classes, kept), classes, NO_CLASS).astype(np.int32))


def read_labels(path: str | Path) -> Labels:
    """The labels in a file; its format is stated at the top of this module.

    Args:
        path: of a file of JSON lines.

    Raises:
        UserError: no such file, another format, two classes for one token or place.
    """
    if not read_bytes(path, LINES_BYTES).endswith(b"\n"):
        raise UserError(f"{path} does not end with a newline, so that its last label may be cut off; add one")
    rows = read_lines(path, nan=False)
    names: dict[str, int] = {}
    tokens: dict[Any, int] = {}
    places: dict[Any, int] = {}
    spelled: dict[int, str] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}, label {number}"
        check(row, FORM, where)
        own = names.setdefault(row["class"], len(names))
        key: Any = row.get("token")
        known = tokens
        if key is None:
            known, key = places, _place(row, where)
        if known.setdefault(key, own) != own:
            raise UserError(f"{where} gives {key} a second class, {row['class'][:100]!r}; write one class for each")
        if row.get("word") is not None and known is tokens:
            spelled[key] = row["word"]
    if not rows or (tokens and places):
        got = "both labels of tokens and labels of places" if rows else "no label"
        raise UserError(f"{path} holds {got}, expected labels of one kind, such as {FORMAT}")
    return Labels(tuple(names), tokens, places, _same_words(spelled), str(path))


def wordnet_labels(tokenizer: Any, directory: str | Path | None = None) -> Labels:
    """The lexicographer file of the first noun sense of every noun that is one token, ``Tops`` left out.

    Its 25 files are WordNet's coarsest categories; ``Tops`` holds the beginners of the others and is none itself. A
    noun counts in the forms of `jhsae.teacher.single_tokens`, which are one word type.

    Args:
        tokenizer: that of the language model, a Hugging Face tokenizer.
        directory: of a WordNet 3.x database; None is the bundled subset.
    """
    synsets, ontology = read_wndb(directory, "n"), from_wordnet(directory, "n", senses=1)
    of_word = {w: synsets[i].category or "Tops" for i, words in ontology.words.items() for w in words}
    names = tuple(sorted(set(of_word.values()) - {"Tops"}))
    words = single_tokens(tokenizer, of_word, ontology.usage).lemmas()
    place = {name: c for c, name in enumerate(names)}
    tokens = {t: place[of_word[w]] for t, w in words.items() if of_word[w] in place}
    return Labels(names, tokens, {}, _same_words({t: words[t].lower() for t in tokens}), "WordNet")


def concept_labels(concepts: Iterable[Concept], words: Mapping[int, str] | None = None) -> Labels:
    """A class per concept (the parents of a `Teacher`), in their order; tokens of several concepts have none.

    Args:
        concepts: with their tokens.
        words: token id -> word (``Vocabulary.lemmas()``), where forms of one word are to be one word type.
    """
    concepts = tuple(concepts)
    owners: dict[int, set[int]] = {}
    for c, concept in enumerate(concepts):
        for token in concept.tokens:
            owners.setdefault(token, set()).add(c)
    tokens = {token: next(iter(own)) for token, own in owners.items() if len(own) == 1}
    spelled = {t: words[t] for t in tokens if t in words} if words else {}
    return Labels(tuple(c.name for c in concepts), tokens, {}, _same_words(spelled), "the teacher")


def _place(row: dict[str, Any], where: str) -> tuple[int, int]:
    if row.get("sequence") is None or row.get("position") is None:
        raise UserError(f"{where} names neither a token nor a sequence and a position; write {FORMAT}")
    return row["sequence"], row["position"]


def _same_words(spelled: Mapping[int, str]) -> dict[int, int]:
    """token id -> the first token id of the same word."""
    first: dict[str, int] = {}
    return {token: first.setdefault(word, token) for token, word in spelled.items()}


def _looked_up(known: Mapping[int, int], keys: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """``known[key]`` of every key, and the entry of `missing` where it is not there."""
    if not known:
        return missing.astype(np.int64)
    have = np.array(sorted(known), np.int64)
    values = np.array([known[k] for k in have.tolist()], np.int64)
    at = np.searchsorted(have, keys).clip(0, len(have) - 1)
    return np.where(have[at] == keys, values[at], missing)
