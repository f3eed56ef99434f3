"""Activations at the words of concepts, in prompts that mention them.

A prompt is a template up to and including the word, and the activation is read at the word: in a causal model later
tokens have no effect, and a template's own last word ("is") carries no information on the concept. All prompts affirm;
what a concept is contrasted with are the prompts of other concepts. In a template with ``{other}`` the prompt names a
word of a sibling concept first.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated

import equinox as eqx
import numpy as np
from annotated_types import MinLen
from jaxtyping import Float, Int

from jhsae.errors import UserError
from jhsae.ranges import Count
from jhsae.teacher.samples import AbstractEvidence, Samples, View
from jhsae.teacher.select import Concept

TEMPLATES = (
    "the",
    "a kind of",
    "an example of",
    "the meaning of the word",
    "something that belongs to the",
    "they spoke about the",
    "not the {other} but the",
    "unlike the {other}, the",
)


class Prompts(AbstractEvidence):
    """Residual activations at a token in every template, whitened on the residual side and centred.

    Args:
        templates: Texts before the token; ``{other}`` in one stands for a word of a sibling concept.
        batch: Prompts per forward pass.
    """

    templates: Annotated[tuple[str, ...], MinLen(1)] = eqx.field(static=True, default=TEMPLATES)
    batch: Count = eqx.field(static=True, default=64)

    def __call__(self, view: View, concepts: tuple[Concept, ...], tokens: Iterable[int]) -> Samples:
        chosen = tuple(sorted(set(tokens)))
        others = siblings(concepts, chosen)
        whitening = np.asarray(view.geometry.residual.matrix, np.float64)
        rows = np.empty((len(chosen), len(self.templates), len(whitening)), np.float32)
        for i, template in enumerate(self.templates):
            rows[:, i] = self._at_word(view, prompt_ids(view, template, chosen, others)) @ whitening.T
        return Samples(np.array(chosen, np.int64), rows - rows.mean((0, 1), dtype=np.float64).astype(np.float32))

    def _at_word(self, view: View, ids: Int[np.ndarray, "prompts time"]) -> Float[np.ndarray, "prompts embed"]:
        """The activation at the last token of every prompt, in batches of one size."""
        filled = ids[np.arange(-(-len(ids) // self.batch) * self.batch) % len(ids)]
        batches = filled.reshape(-1, self.batch, ids.shape[1])
        return np.concatenate([view.residual(b)[:, -1] for b in batches])[: len(ids)].astype(np.float64)


def prompt_ids(
    view: View, template: str, tokens: tuple[int, ...], others: Mapping[int, int]
) -> Int[np.ndarray, "prompts time"]:
    """BOS if there is one, the template, the token; one row per token, all of one length."""
    pieces = [view.encode(piece.strip()) for piece in template.split("{other}")]
    if len(pieces) > 2:
        raise UserError(f"template {template!r} has {{other}} more than once; write it once or not at all")
    middle = [[[others[t]] for t in tokens]] if len(pieces) == 2 else []
    first = [] if view.bos is None else [view.bos]
    columns = [[[*first, *pieces[0]]] * len(tokens), *middle]
    columns += [[pieces[1]] * len(tokens)] if middle else []
    columns.append([[t] for t in tokens])
    return np.concatenate([np.asarray(c, np.int32).reshape(len(tokens), -1) for c in columns], axis=1)


def siblings(concepts: tuple[Concept, ...], tokens: tuple[int, ...]) -> dict[int, int]:
    """A token of a sibling concept for every token; else one far from it in `tokens`."""
    half = len(tokens) // 2
    found = {t: tokens[(i + half) % len(tokens)] for i, t in enumerate(tokens)}
    for parent in reversed(concepts):
        for child in parent.children:
            rest = [t for t in parent.tokens if t not in set(child.tokens)]
            found |= {t: rest[i % len(rest)] for i, t in enumerate(child.tokens)}
    return found
