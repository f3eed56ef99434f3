from dataclasses import replace

import pytest

from jhsae.errors import UserError
from jhsae.teacher import Ontology, SelectionLimits, Vocabulary, select
from jhsae.teacher.select import merged_children, token_sets

LOOSE = SelectionLimits(min_tokens=4, max_tokens=1000, min_child_tokens=2, rest=2)


def chain(*sizes):
    """A chain of concepts, top first, where concept i has `sizes[i]` tokens of its own."""
    ids = [str(i) for i in range(len(sizes))]
    words = {i: tuple(f"{i}-{n}" for n in range(size)) for i, size in zip(ids, sizes, strict=True)}
    vocabulary = Vocabulary({w: (k,) for k, w in enumerate(w for ws in words.values() for w in ws)}, {})
    parents = {i: (ids[n - 1],) if n else () for n, i in enumerate(ids)}
    return Ontology({i: i for i in ids}, words, parents), vocabulary


def test_planted_parents_and_children_are_found(world):
    assert sorted(c.id for c in world.concepts) == ["p0", "p1", "p2", "p3"]
    for concept in world.concepts:
        assert [c.id for c in concept.children] == [f"{concept.id}c{i}" for i in range(3)]
        assert len(concept.tokens) == 36
        assert set(concept.tokens) == {t for child in concept.children for t in child.tokens}


def test_tokens_are_those_of_the_words_and_of_everything_below(world):
    tokens = token_sets(world.ontology, world.vocabulary)
    for i in ("root", "p1", "p1c2", "p1c2w3"):
        words = world.ontology.hyponym_words(i)
        assert tokens[i] == {t for w in words for t in world.vocabulary.ids[w]}


def test_no_parent_is_above_another_and_two_runs_agree(world):
    for parents in (1, 4):
        chosen = select(world.ontology, world.vocabulary, parents, replace(LOOSE, max_tokens=40))
        ids = {c.id for c in chosen}
        assert len(ids) == parents
        assert not any(world.ontology.ancestors(i) & ids for i in ids)
        assert chosen == select(world.ontology, world.vocabulary, parents, replace(LOOSE, max_tokens=40))


def test_a_large_parent_is_split_only_when_it_must_be(world):
    assert [c.id for c in select(world.ontology, world.vocabulary, 1, LOOSE)] == ["root"]


def test_a_concept_that_adds_little_to_its_only_child_is_merged_into_it():
    ontology, vocabulary = chain(5, 1, 6)
    tokens = token_sets(ontology, vocabulary)
    assert merged_children(ontology, tokens, least=2, rest=2) == {"0": ("2",), "2": ()}
    assert merged_children(ontology, tokens, least=2, rest=1) == {"0": ("1",), "1": ("2",), "2": ()}
    assert merged_children(ontology, tokens, least=7, rest=1) == {"0": ("1",), "1": ()}


def test_named_concepts_are_taken_in_their_order_nested_or_not(world):
    chosen = select(world.ontology, world.vocabulary, 99, LOOSE, ["p2", "root", "parent0.n.01"])
    assert [c.id for c in chosen] == ["p2", "root", "p0"]


def test_what_cannot_be_a_parent_is_named(world):
    with pytest.raises(UserError, match=r"leaf111\.n\.01 has 1 single-token words and 0 children"):
        select(world.ontology, world.vocabulary, 1, LOOSE, ["leaf111.n.01"])
    with pytest.raises(UserError, match="4 parents, not 5; write parents: 4"):
        select(world.ontology, world.vocabulary, 5, replace(LOOSE, min_tokens=20))
    with pytest.raises(UserError, match="unknown concept 'unicorn'"):
        select(world.ontology, world.vocabulary, 1, LOOSE, ["unicorn"])
    with pytest.raises(UserError, match="min_child_tokens is 1, expected at least 2"):
        SelectionLimits(min_child_tokens=1)


def test_of_two_parents_with_the_same_words_one_is_left_out(world):
    ontology = Ontology(
        world.ontology.names | {"q": "copy.n.01"},
        world.ontology.words | {"q": ()},
        world.ontology.parents | {"q": ("root",), "p0c0": ("p0", "q"), "p0c1": ("p0", "q")},
    )
    with pytest.raises(UserError, match="4 parents, not 5"):
        select(ontology, world.vocabulary, 5, LOOSE)
