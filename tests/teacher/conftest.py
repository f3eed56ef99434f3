"""A planted world: an ontology, a vocabulary and an unembedding in which the hierarchy is known."""

from dataclasses import dataclass

import numpy as np
import pytest

from jhsae.metric import CausalGeometry, causal
from jhsae.teacher import Concept, Ontology, SelectionLimits, Vocabulary, select, single_tokens
from jhsae.teacher.samples import View

PARENTS, CHILDREN, WORDS, EMBED, VOCAB = 4, 3, 12, 24, 3000


class Tokenizer:
    """One token for every known word (with a space before it), two for any other text."""

    unk_token_id = 3

    def __init__(self, words):
        self.ids = {" " + word: i for i, word in enumerate(words, start=4)}

    def __call__(self, texts, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [[self.ids[t]] if t in self.ids else [3, 3] for t in texts]}


@dataclass(frozen=True)
class World:
    ontology: Ontology
    vocabulary: Vocabulary
    concepts: tuple[Concept, ...]
    unembedding: np.ndarray
    geometry: CausalGeometry
    parents: np.ndarray  # [parents, embed], true unified-space vectors
    deltas: np.ndarray  # [parents, children, embed]
    mixing: np.ndarray  # a row of the unembedding is (unified vector) @ mixing

    def view(self, residual=lambda ids: np.zeros((*ids.shape, EMBED))):
        return View(self.unembedding, self.geometry, residual, lambda text: [5] * len(text.split()), bos=2)


def planted_ontology():
    names, words, parents = {"root": "root.n.01"}, {"root": ()}, {"root": ()}
    for p in range(PARENTS):
        names[f"p{p}"], words[f"p{p}"], parents[f"p{p}"] = f"parent{p}.n.01", (), ("root",)
        for c in range(CHILDREN):
            names[f"p{p}c{c}"], words[f"p{p}c{c}"] = f"child{p}{c}.n.01", ()
            parents[f"p{p}c{c}"] = (f"p{p}",)
            for w in range(WORDS):
                i = f"p{p}c{c}w{w}"
                names[i], words[i], parents[i] = f"leaf{p}{c}{w}.n.01", (f"W{p}{c}{w}",), (f"p{p}c{c}",)
    return Ontology(names, words, parents)


@pytest.fixture(scope="session")
def world():
    """Unified vectors g = parent + delta + noise for the words of a child, noise for all other tokens."""
    rng = np.random.default_rng(0)
    ontology = planted_ontology()
    names = [word for words in ontology.words.values() for word in words]
    vocabulary = single_tokens(Tokenizer(names), names, {})
    concepts = select(ontology, vocabulary, PARENTS, SelectionLimits(max_tokens=40))
    basis = np.linalg.qr(rng.normal(size=(EMBED, EMBED)))[0].T
    parents = 4.0 * basis[:PARENTS]
    deltas = 4.0 * basis[PARENTS : PARENTS + PARENTS * CHILDREN].reshape(PARENTS, CHILDREN, EMBED)
    g = rng.normal(size=(VOCAB, EMBED))
    for p, parent in enumerate(parents):
        for c, delta in enumerate(deltas[p]):
            for word in sorted(ontology.hyponym_words(f"p{p}c{c}")):  # a set: its order differs by process
                g[vocabulary.ids[word][0]] = parent + delta + 0.5 * rng.normal(size=EMBED)
    mixing = np.diag(np.geomspace(0.3, 3.0, EMBED)) @ np.linalg.qr(rng.normal(size=(EMBED, EMBED)))[0]
    unembedding = (g @ mixing + 5.0).astype(np.float32)
    geometry = causal(unembedding, shrinkage=0.0)
    order = [int(c.id[1:]) for c in concepts]
    return World(ontology, vocabulary, concepts, unembedding, geometry, parents[order], deltas[order], mixing)
