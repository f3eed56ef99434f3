"""Steering with one latent: what an edit of it does to the logits of its tokens, beside random directions.

The effect is the change of the mean logit of the tokens at the end of a prompt, less that of the whole vocabulary
(`jhsae.evals.steering.relative`). The null: at every token, a random direction in place of what the edit adds there, of
the same norm, and under the same control of the stream's norm; one direction per draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge
from jaxtyping import Array, Float, Int

from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.evals.interventions.edits import AbstractEdit
from jhsae.evals.interventions.model import Norm, Read, SplicedLM, in_lm_units, logits_at, moved
from jhsae.evals.interventions.prompts import Positions, Prompts, token_id
from jhsae.evals.nulls import Comparison, compare
from jhsae.evals.steering import relative
from jhsae.features.decoder import feature_logits
from jhsae.lm import AbstractLM
from jhsae.ranges import Count, Seed, ranged

LEAST = 40  # random directions: with fewer no two-sided p-value is below 0.05


@dataclass(frozen=True, eq=False)
class Steered:
    """The effect of one edit.

    Args:
        latent: its name, as it was given.
        row: its row of the dictionary.
        tokens: the ids whose mean logit is measured.
        effects: by prompt, in nats of logit; NaN where the prompt has no edited position.
        null: those of each random direction, [controls, prompts].
        share: by prompt, the mean norm of what is added over that of the stream, where something is.
        edited: by prompt, how many tokens are edited.
        before: logits at the last token without the edit, [prompts, vocab].
        after: with it.
    """

    latent: str
    row: int
    tokens: tuple[int, ...]
    effects: Float[np.ndarray, " prompts"]
    null: Float[np.ndarray, "controls prompts"]
    share: Float[np.ndarray, " prompts"]
    edited: Int[np.ndarray, " prompts"]
    before: Float[np.ndarray, "prompts vocab"]
    after: Float[np.ndarray, "prompts vocab"]

    def comparison(self, seed: int = 0) -> Comparison | None:
        """The mean effect with its bootstrap interval over prompts, beside the null; None where nothing is edited."""
        some = np.isfinite(self.effects)
        return (
            compare(self.effects[some], self.null[:, some], alternative="two-sided", seed=seed) if some.any() else None
        )

    def margin(self, seed: int = 0) -> Comparison | None:
        """As `comparison`, of the effect less the mean of the random directions, prompt by prompt."""
        some = np.isfinite(self.effects)
        if not some.any():
            return None
        middle = self.null[:, some].mean(axis=0)
        return compare(self.effects[some] - middle, self.null[:, some] - middle, alternative="two-sided", seed=seed)


@ranged
def steer(
    inside: SplicedLM,
    prompts: str | Sequence[str] | Prompts,
    latent: str | int,
    edit: AbstractEdit,
    tokens: Sequence[str | int] | None = None,
    *,
    positions: Positions = "all",
    norm: Norm = "free",
    controls: Annotated[int, Ge(LEAST)] = 60,
    own_tokens: Count = 10,
    seed: Seed = 0,
    batch: Count = 8,
) -> Steered:
    """Steers with a latent, and with random directions of the same norm.

    Args:
        inside: the language model with the SAE in it.
        prompts: texts, or their token ids.
        latent: its name (`jhsae.features.names`), or the number of its row.
        edit: what happens to its code.
        tokens: those whose mean logit is measured, by text or id; by default the ones that its row raises most.
        positions: every token of a prompt is edited, or its last one.
        norm: "kept" scales the edited stream to the norm that it had before.
        controls: random directions.
        own_tokens: how many tokens are measured where `tokens` are not given.
        seed: of the random directions.
        batch: prompts per forward pass.

    Raises:
        UserError: a prompt, latent or token that is not there, a row of zeros, or logits that are not finite.
    """
    found = inside.prompts(prompts)
    rows = inside.rows({latent: edit})
    row = int(rows[0].rows[0])
    directions = _directions(inside, controls, seed)
    targets = None if tokens is None else tuple(dict.fromkeys(token_id(one, inside.model) for one in tokens))
    if targets == ():
        raise UserError("tokens is an empty list; write at least one token, or leave it out")
    parts = []
    for part in _batches(found, batch):
        read = inside.read(part)
        if targets is None:
            targets = own(inside, part, read, row, own_tokens)
        delta = inside.delta(read, rows, part.at(positions))
        parts.append(_measured(inside, part, read, delta, directions, members(targets, inside.model.model.vocab), norm))
    effects, share, edited, before, after, null = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not (np.isfinite(after).all() and np.isfinite(share).all()):
        raise UserError(f"stream or logits are not finite with latent {latent} edited; write a smaller strength")
    effects[edited == 0] = np.nan
    assert targets is not None
    return Steered(str(latent), row, targets, effects, null.T, share, edited, before, after)


def own(inside: SplicedLM, prompts: Prompts, read: Read, row: int, count: int) -> tuple[int, ...]:
    """The tokens that a row of the dictionary raises most, by the unembedding alone.

    Args:
        inside: the language model with the SAE in it.
        prompts: whose tokens a normaliser with a scale per token takes its scale from.
        read: what the SAE reads there.
        row: of the dictionary.
        count: how many.

    Raises:
        UserError: a row of zeros.
    """
    live = np.asarray(prompts.live).reshape(-1)
    middle = jax.tree.map(lambda a: jnp.median(a[live], axis=0, keepdims=True), read.token)
    vector = in_lm_units(inside.normalizer, inside.sae.dictionary()[row][None], middle)
    if not bool(jnp.any(vector)):
        raise UserError(f"row {row} of the dictionary is 0 and raises no token; write another latent")
    count = min(count, inside.model.model.vocab)
    top = feature_logits(np.asarray(vector, np.float32), inside.model.model.unembedding(), count)
    return tuple(top.top_ids[0].tolist())


def most_active(inside: SplicedLM, prompts: str | Sequence[str] | Prompts, count: int) -> list[int]:
    """The rows of the latents that write most on some prompts: by the sum of |code| times the norm of the row.

    Args:
        inside: the language model with the SAE in it.
        prompts: texts, or their token ids.
        count: how many, at most; silent ones are left out.
    """
    found = inside.prompts(prompts)
    codes = inside.read(found).codes.flat()
    live = jnp.where(found.live.reshape(-1, 1), jnp.abs(codes.values), 0.0)
    total = np.asarray(Codes(live, codes.indices, codes.size).dense().sum(axis=0))
    total = total * np.linalg.norm(np.asarray(inside.sae.dictionary()), axis=1)
    return [int(row) for row in np.argsort(-total, kind="stable")[:count] if total[row] > 0]


def members(tokens: Sequence[int], vocab: int) -> Float[Array, "1 vocab"]:
    """Equal weights over tokens, which add up to 1."""
    return jnp.zeros((1, vocab)).at[0, jnp.asarray(tokens)].set(1.0 / len(tokens))


def _batches(prompts: Prompts, size: int) -> Iterator[Prompts]:
    for start in range(0, len(prompts.lengths), size):
        yield prompts.part(start, start + size)


def _directions(inside: SplicedLM, controls: int, seed: int) -> Float[Array, "controls embed"]:
    drawn = np.random.default_rng(seed).normal(size=(controls, inside.sae.embed))
    return jnp.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), jnp.float32)


def _measured(
    inside: SplicedLM,
    prompts: Prompts,
    read: Read,
    delta: Float[Array, "prompts time embed"],
    directions: Float[Array, "controls embed"],
    weights: Float[Array, "1 vocab"],
    norm: Norm,
) -> tuple[np.ndarray, ...]:
    """Effects, shares of the norm, edited tokens, logits, and the effects of the null, by prompt of one batch."""
    model, base = inside.model.model, inside.base(prompts, read)
    lengths = jnp.linalg.norm(delta, axis=-1)
    before = logits_at(model, base, inside.layer, prompts.last)
    after = logits_at(model, moved(base, delta, norm), inside.layer, prompts.last)
    null = _null(model, base, lengths, directions, before, prompts.last, weights, inside.layer, norm)
    count = jnp.sum(lengths > 0, axis=1)
    shares = jnp.where(lengths > 0, lengths / jnp.linalg.norm(base, axis=-1), 0.0)
    share = jnp.sum(shares, axis=1) / jnp.maximum(count, 1)
    found = (relative(after - before, weights)[:, 0], share, count, before, after, null.T)
    return tuple(np.array(one) for one in found)


@eqx.filter_jit
def _null(
    model: AbstractLM,
    base: Float[Array, "prompts time embed"],
    lengths: Float[Array, "prompts time"],
    directions: Float[Array, "controls embed"],
    before: Float[Array, "prompts vocab"],
    last: Int[Array, "prompts"],
    weights: Float[Array, "1 vocab"],
    layer: int,
    norm: Norm,
) -> Float[Array, "controls prompts"]:
    def effect(direction: Float[Array, "embed"]) -> Float[Array, "prompts"]:
        stream = moved(base, lengths[..., None] * direction, norm)
        return relative(model.logits_at(stream, layer, last) - before, weights)[:, 0]

    return jax.lax.map(effect, directions)
