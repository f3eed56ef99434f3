"""An ontology: concepts in a directed acyclic graph, each with the words that name it.

WordNet's nouns are the default (synset = concept, hypernym = parent, lemma = word), but any graph will do
(`jhsae.teacher.edges` reads one from a file).
Names are those of NLTK, ``plant.n.02``: first lemma, part of speech, rank of the sense. A lemma may be
restricted to its first `senses` senses, so that "figure" does not count as a word for a person.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from jhsae.data.wordnet import PARTS, bundled, read_table, read_wndb
from jhsae.errors import UserError, nearest

WORD = re.compile("[A-Za-z]+")


@dataclass(frozen=True)
class Ontology:
    """Concepts by id.

    Args:
        names: Id -> a unique readable name.
        words: Id -> the words of the concept itself, without those below it.
        parents: Id -> the ids of its parents.
        usage: Word -> its count in the ontology's own text (WordNet: its glosses); empty without such a text.
        verbs: Ids of the concepts whose words are verbs; those of the others are nouns.
    """

    names: Mapping[str, str]
    words: Mapping[str, tuple[str, ...]]
    parents: Mapping[str, tuple[str, ...]]
    usage: Mapping[str, int] = field(default_factory=dict)
    verbs: frozenset[str] = frozenset()

    def part(self, concept: str) -> str:
        """The part of speech of a concept's words: ``n`` or ``v``."""
        return "v" if concept in self.verbs else "n"

    def lexicon(self, part: str) -> set[str]:
        """The words of all concepts of a part of speech."""
        return {word for i, words in self.words.items() if self.part(i) == part for word in words}

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """Direct children, in the order of the ontology."""
        below: dict[str, list[str]] = {i: [] for i in self.names}
        for child, parents in self.parents.items():
            for parent in parents:
                if parent not in below:
                    raise UserError(f"concept {child!r} has the parent {parent!r}, which is not in the ontology")
                below[parent].append(child)
        return {i: tuple(c) for i, c in below.items()}

    @cached_property
    def upwards(self) -> tuple[str, ...]:
        """Every concept after all of its children. A cycle is an error."""
        missing = {i: len(c) for i, c in self.children.items()}
        order = [i for i, n in missing.items() if n == 0]
        for i in order:
            for parent in self.parents[i]:
                missing[parent] -= 1
                if missing[parent] == 0:
                    order.append(parent)
        if len(order) < len(self.names):
            stuck = next(i for i, n in missing.items() if n > 0)
            raise UserError(f"the ontology has a cycle at or above {self.names[stuck]!r}; it must have none")
        return tuple(order)

    def ancestors(self, concept: str) -> set[str]:
        """Ids of everything above `concept`, without itself."""
        seen: set[str] = set()
        todo = list(self.parents[concept])
        while todo:
            i = todo.pop()
            if i not in seen:
                seen.add(i)
                todo.extend(self.parents[i])
        return seen

    def hyponym_words(self, concept: str) -> set[str]:
        """The words of `concept` and of everything below it."""
        seen, todo = {concept}, [concept]
        while todo:
            for child in self.children[todo.pop()]:
                if child not in seen:
                    seen.add(child)
                    todo.append(child)
        return {word for i in seen for word in self.words[i]}

    def find(self, name: str) -> str:
        """The id of a concept given by id, by name (``plant.n.02``) or by one of its words (``plant``).

        A word of several concepts means the one with the most words below it.
        """
        if name in self.names:
            return name
        found = [i for i, n in self.names.items() if n == name]
        found = found or [i for i, words in self.words.items() if name in words]
        if not found:
            known = {*self.names.values(), *(w for words in self.words.values() for w in words)}
            raise UserError(
                f"unknown concept {name!r}: no id, name or word of the ontology ({len(self.names)} concepts)"
                + nearest(name, known)
            )
        return max(found, key=lambda i: len(self.hyponym_words(i)))


def from_wordnet(directory: str | Path | None = None, parts: str = "n", senses: int | None = None) -> Ontology:
    """WordNet as an ontology.

    Args:
        directory: Of a WordNet 3.x database; None is the bundled subset.
        parts: Parts of speech.
        senses: Senses of a lemma that count, the most frequent first; None counts all.
    """
    synsets = read_wndb(directory, parts)
    folder = Path(directory) if directory is not None else bundled()
    rank = {key: r for part in parts for key, r in _ranks(folder, part).items()}
    for i, synset in synsets.items():
        for lemma in synset.lemmas:
            if (lemma.lower(), i) not in rank:
                raise UserError(
                    f"{folder}: index.{PARTS[i[0]]} does not list {lemma!r} as a word of {i}; "
                    "it is not the index of these data files"
                )
    limit = senses if senses is not None else 1 << 30
    words = {i: tuple(w for w in s.lemmas if rank[w.lower(), i] <= limit) for i, s in synsets.items()}
    names = {
        i: f"{s.lemmas[0].lower().replace(' ', '_')}.{i[0]}.{rank[s.lemmas[0].lower(), i]:02d}"
        for i, s in synsets.items()
    }
    usage = Counter(word for s in synsets.values() for word in WORD.findall(s.gloss))
    above = {i: s.hypernyms for i, s in synsets.items()}
    return Ontology(names, words, above, usage, frozenset(i for i in synsets if i[0] == "v"))


def _ranks(folder: Path, part: str) -> dict[tuple[str, str], int]:
    """(lemma in lower case, synset id) -> rank of that sense, from 1; read from ``index.noun`` or its kin."""
    for path in (folder / f"index.{PARTS[part]}", folder / f"index.{PARTS[part]}.gz"):
        if path.exists():
            senses: dict[tuple[str, str], int] = {}
            for number, line in read_table(path):
                row = line.split()
                count = int(row[2]) if len(row) > 2 and row[2].isdecimal() else 0
                if not 1 <= count <= len(row) - 3:
                    raise UserError(f"{path}, line {number}, is no entry of an index (format wndb(5WN)); copy it again")
                word = row[0].replace("_", " ")
                senses |= {(word, part + offset): rank for rank, offset in enumerate(row[-count:], start=1)}
            return senses
    raise UserError(f"no index.{PARTS[part]} in {folder}; it belongs beside data.{PARTS[part]}")
