"""Selection of a teacher's concepts: diverse parents, whose children have words in the vocabulary.

A concept's tokens are those of its words and of everything below it. Concepts with too few are dropped; one
that adds next to nothing to its only child is merged into it (after Park et al., arXiv 2406.01506).
Parents are found from the top: the largest is replaced by the parents below it until there are enough and
none is too large, so that no parent is an ancestor of another and they are diverse. Deterministic.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from jhsae.errors import UserError
from jhsae.ranges import Count, Fraction, ranged
from jhsae.teacher.ontology import Ontology
from jhsae.teacher.vocabulary import Vocabulary

Spread = Annotated[int, Ge(2)]  # one sample has no variance


@dataclass(frozen=True)
class Concept:
    """A concept and its words in the vocabulary.

    Args:
        id: That of the ontology.
        name: A unique readable name.
        tokens: Token ids of its words and of everything below it.
        children: Of a parent, those with most tokens first; a child has none.
    """

    id: str
    name: str
    tokens: tuple[int, ...]
    children: tuple["Concept", ...] = ()


@ranged
@dataclass(frozen=True)
class SelectionLimits:
    """Criteria of a parent and of its children; the annotations say what each one means.

    Raises:
        UserError: A minimum is above its maximum.
    """

    min_tokens: Annotated[Count, "tokens of a parent, at least"] = 12
    max_tokens: Annotated[Count, "a parent with more is split where possible"] = 100
    min_child_tokens: Annotated[Spread, "tokens of a child, at least"] = 3
    min_children: Annotated[Count, "children of a parent, at least"] = 2
    max_children: Annotated[Count, "children of a parent, at most; those with the most tokens stay"] = 16
    rest: Annotated[Spread, "tokens of a parent that a child leaves to the others, at least"] = 5
    overlap: Annotated[Fraction, "of two parents or siblings that share more of their tokens, the larger stays"] = 0.5

    def __post_init__(self) -> None:
        for what in ("tokens", "children"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least > most:
                raise UserError(f"min_{what} is {least} and max_{what} {most}; write a max_{what} of at least {least}")


def token_sets(ontology: Ontology, vocabulary: Vocabulary) -> dict[str, frozenset[int]]:
    """Concept id -> the tokens of its words and of everything below it."""
    tokens: dict[str, frozenset[int]] = {}
    for i in ontology.upwards:
        own = (t for word in ontology.words[i] for t in vocabulary.of(word, ontology.part(i)))
        tokens[i] = frozenset(own).union(*(tokens[c] for c in ontology.children[i]))
    return tokens


def merged_children(
    ontology: Ontology, tokens: Mapping[str, frozenset[int]], least: int, rest: int
) -> dict[str, tuple[str, ...]]:
    """The graph of the concepts with at least `least` tokens, chains merged: id -> ids of children.

    A concept with one such child and fewer than `rest` tokens more is absent; its child takes its place.
    """
    kept: dict[str, tuple[str, ...]] = {}
    stands_for: dict[str, str] = {}
    for i in ontology.upwards:
        if len(tokens[i]) >= least:
            below = dict.fromkeys(stands_for[c] for c in ontology.children[i] if c in stands_for)
            only = next(iter(below), i)
            if len(below) == 1 and len(tokens[i]) - len(tokens[only]) < rest:
                stands_for[i] = only
            else:
                stands_for[i] = i
                kept[i] = tuple(below)
    return kept


def select(
    ontology: Ontology,
    vocabulary: Vocabulary,
    parents: int,
    limits: SelectionLimits,
    concepts: Iterable[str] = (),
) -> tuple[Concept, ...]:
    """Selects parent concepts, most tokens first; or exactly those named by `concepts`, in that order.

    Args:
        ontology: The graph of concepts.
        vocabulary: Words that are single tokens.
        parents: Number of parents.
        limits: Criteria of parents and children.
        concepts: Names, words or ids of parents; empty selects them.

    Raises:
        UserError: An unknown concept, one with too few words, or fewer parents than requested.
    """
    tokens = token_sets(ontology, vocabulary)
    graph = merged_children(ontology, tokens, limits.min_child_tokens, limits.rest)
    finder = _Finder(ontology, tokens, graph, limits)
    named = [finder.parent(ontology.find(name)) for name in concepts]
    return tuple(named) if named else finder.diverse(parents)


@dataclass(frozen=True)
class _Finder:
    ontology: Ontology
    tokens: Mapping[str, frozenset[int]]
    graph: Mapping[str, tuple[str, ...]]
    limits: SelectionLimits

    def parent(self, i: str) -> Concept:
        """The concept as a parent, or the reason why it cannot be one."""
        children = self.children(i)
        if not self.is_parent(i):
            raise UserError(
                f"{self.ontology.names[i]} has {len(self.tokens[i])} single-token words and {len(children)} "
                f"children with enough of them; a parent needs {self.limits.min_tokens} and "
                f"{self.limits.min_children}: lower min_tokens or min_child_tokens, or leave this concept out"
            )
        return self.concept(i, tuple(self.concept(c) for c in children))

    def concept(self, i: str, children: tuple[Concept, ...] = ()) -> Concept:
        return Concept(i, self.ontology.names[i], tuple(sorted(self.tokens[i])), children)

    def by_size(self, ids: Iterable[str]) -> list[str]:
        return sorted(ids, key=lambda i: (-len(self.tokens[i]), i))

    def distinct(self, ids: Iterable[str]) -> list[str]:
        """Most tokens first, without those that mostly repeat one before them."""
        chosen: list[str] = []
        for i in self.by_size(ids):
            most = self.limits.overlap * len(self.tokens[i])
            if all(len(self.tokens[i] & self.tokens[j]) <= most for j in chosen):
                chosen.append(i)
        return chosen

    def children(self, i: str) -> list[str]:
        """The children it would have as a parent. A merged concept has those of the child it became."""
        while i not in self.graph:
            fit = [c for c in self.ontology.children[i] if len(self.tokens[c]) >= self.limits.min_child_tokens]
            if not fit:
                return []
            i = fit[0]
        most = len(self.tokens[i]) - self.limits.rest
        fit = self.distinct(c for c in self.graph[i] if len(self.tokens[c]) <= most)
        return fit[: self.limits.max_children]

    def is_parent(self, i: str) -> bool:
        enough = len(self.tokens[i]) >= self.limits.min_tokens
        return enough and len(self.children(i)) >= self.limits.min_children

    def below(self, i: str) -> set[str]:
        """The closest parents below i."""
        found: set[str] = set()
        todo = list(self.graph[i])
        while todo:
            c = todo.pop()
            if self.is_parent(c):
                found.add(c)
            else:
                todo.extend(self.graph[c])
        return found

    def split(self, i: str) -> set[str]:
        """The closest two or more parents below i; none where there is only a chain of single ones."""
        found = self.below(i)
        while len(found) == 1:
            found = self.below(found.pop())
        return found

    def diverse(self, parents: int) -> tuple[Concept, ...]:
        """Split the largest parent until `parents` distinct ones are there and no more is too large."""
        roots = [i for i in self.graph if not self.ontology.ancestors(i) & self.graph.keys()]
        frontier = {p for i in roots for p in ({i} if self.is_parent(i) else self.below(i))}
        whole: set[str] = set()
        while largest := next((i for i in self.by_size(frontier) if i not in whole), ""):
            if len(self.tokens[largest]) <= self.limits.max_tokens and len(self.distinct(frontier)) >= parents:
                break
            pieces = self.split(largest)
            if pieces:
                frontier = self.antichain(frontier - {largest} | pieces)
            else:
                whole.add(largest)
        chosen = self.distinct(frontier)
        if len(chosen) < parents:
            raise UserError(
                f"the vocabulary and ontology give {len(chosen)} parents, not {parents}; "
                f"write parents: {len(chosen)}, or lower min_tokens ({self.limits.min_tokens}) "
                f"or min_child_tokens ({self.limits.min_child_tokens})"
            )
        return tuple(self.parent(i) for i in chosen[:parents])

    def antichain(self, ids: set[str]) -> set[str]:
        """Without those that have an ancestor among them."""
        return {i for i in ids if not self.ontology.ancestors(i) & ids}
