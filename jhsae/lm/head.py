"""The matrix of the logits: as in transformers, a head in the checkpoint takes precedence over tie_word_embeddings.

Tied and both present: the embedding where they are equal, else the head. Tied and one present: that one for both. Not
tied: the head, which must be present.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from jhsae.lm.base import AbstractConfig, AbstractLM
from jhsae.lm.scaled import Weights

ROWS = 4096


def settle_head(config: Any, model: type[AbstractLM], weights: Weights) -> tuple[AbstractConfig, set[str]]:
    """`config`, untied where the checkpoint has a different head; and the tensors that are not needed."""
    head, embedding = model.tensors["head"], model.tensors["embedding"]
    held = next((name for name in (head, *model.other_heads) if name in weights), head)
    if held != head:
        weights.stands_for(held, head)
    if "head" in config.extras or held not in weights:
        return config, set()
    if embedding not in weights:
        weights.stands_for(held, embedding)
        return config, set()
    if not _equal(weights, held, embedding):
        return replace(config, extras=("head", *config.extras)), set()
    return config, weights.names(held)


def _equal(weights: Weights, one: str, other: str) -> bool:
    shape = weights.info(one).shape
    if weights.info(other).shape != shape or len(shape) != 2:
        return False
    for name in (one, other):
        weights.check(name, shape)
    parts = [(slice(start, start + ROWS), slice(None)) for start in range(0, shape[0], ROWS)]
    return all(
        np.array_equal(weights.read(one, part, np.float32), weights.read(other, part, np.float32)) for part in parts
    )
