"""Steering: what adding a latent's direction to the residual stream does to the next token, beside random directions.

In the spliced language model (`jhsae.evals.splice`), ``alpha`` times the latent's decoder row, in the language model's
units, is added to the reconstruction at the SAE's layer, and the remaining blocks run. The effect on a group of tokens
is the change of their mean logit at the steered positions, less that of the whole vocabulary, which the softmax does
not see. Groups: the latent's own tokens (target), those of its siblings, and all others (unrelated). The null: random
directions of the same norm at the same positions.

(PolytopeSAE added the vector behind the final norm, so that the effect, ``alpha U v``, was one number for every prompt
and any SAE. Here it goes through the blocks, and depends on both.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jhsae.errors import UserError
from jhsae.evals.groups import groups, measured
from jhsae.evals.labels import Labels
from jhsae.evals.splice import Replace, replaced
from jhsae.features.decoder import directions, feature_logits
from jhsae.lm import AbstractLM
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import Forest

KINDS = ("target", "siblings", "unrelated")


@dataclass(frozen=True)
class SteeringTarget:
    """A latent to steer, and what it should do.

    Args:
        latent: its row in the dictionary.
        tokens: ids of the tokens that it should raise.
        siblings: ids of its siblings' tokens, which it should not raise; those among `tokens` do not count.
    """

    latent: int
    tokens: tuple[int, ...]
    siblings: tuple[int, ...]


def own_targets(
    rows: Float[np.ndarray, "features embed"],
    unembedding: Float[Array, "vocab width"],
    latents: Iterable[int],
    tree: Forest | None,
    tokens: Count = 10,
    siblings: Count = 4,
) -> list[SteeringTarget]:
    """The tokens that each latent's own row raises most, and those of its nearest siblings by cosine.

    Args:
        rows: the dictionary in the language model's units (`decoder_in_lm_units`).
        unembedding: that of `lm.AbstractLM.unembedding`.
        latents: those to steer.
        tree: ``sae.tree``: siblings of an atom are the other children of its parent, those of an expert other experts.
        tokens: per latent.
        siblings: per latent.
    """
    unit = np.asarray(directions(rows.astype(np.float32)))
    found = []
    for latent in latents:
        _check_latent(latent, rows)
        others = np.setdiff1d(_siblings(latent, tree, len(rows)), [latent])
        near = others[np.argsort(-(unit[others] @ unit[latent]), kind="stable")[:siblings]]
        top = feature_logits(rows[[latent, *near]].astype(np.float32), unembedding, tokens).top_ids
        own = top[0].tolist()
        found.append(SteeringTarget(latent, tuple(own), tuple(sorted({*top[1:].ravel().tolist()} - set(own)))))
    return found


def class_targets(labels: Labels, classes: Mapping[int, int]) -> list[SteeringTarget]:
    """The tokens of each latent's class, and as siblings' those of the other classes.

    Args:
        labels: of tokens.
        classes: latent -> class, a place in ``labels.names``.
    """
    by_class: dict[int, list[int]] = {}
    for token, own in labels.tokens.items():
        by_class.setdefault(own, []).append(token)
    everything, found = set(labels.tokens), []
    for latent, own in classes.items():
        tokens = sorted(by_class.get(own, []))
        found.append(SteeringTarget(latent, tuple(tokens), tuple(sorted(everything - set(tokens)))))
    return found


@ranged
def steering(
    model: AbstractLM,
    layer: int,
    replace: Replace,
    rows: Float[np.ndarray, "features embed"],
    targets: Sequence[SteeringTarget],
    tokens: Int[np.ndarray, "sequences context"],
    special: list[int],
    alpha: float,
    positions: Literal["all", "last"] = "last",
    controls: Count = 5,
    seed: Seed = 0,
    batch: Count = 16,
) -> dict[str, Any]:
    """Effects of steering on target, siblings' and unrelated tokens, by latent and by prompt, and of random directions.

    Args:
        model: the language model.
        layer: of the SAE: the number of blocks before the steered stream.
        replace: what the stream is replaced by before the direction is added, such as `Spliced` of the SAE.
        rows: its dictionary in the language model's units (`decoder_in_lm_units`).
        targets: the latents and their tokens (`own_targets`, `class_targets`).
        tokens: the prompts, of one length.
        special: ids whose positions are neither replaced nor steered (`jhsae.data.special_ids`).
        alpha: the code that is added: the vector is alpha times the row.
        positions: every position of a prompt, or its last one.
        controls: random directions per latent.
        seed: of those.
        batch: prompts per forward pass.

    Returns:
        ``target``, ``siblings`` and ``unrelated``, in nats of logit, and ``selectivity``, target less siblings, in the
        form of `jhsae.evals.groups` with a draw of the null per random direction; ``by_prompt``, the effect on the
        target for every latent and prompt. None for an empty group of tokens, a row of zeros, and a prompt without a
        position to steer.

    Raises:
        UserError: rows of another width, no prompt with a position to steer, an unknown latent or token.
    """
    _check(model, rows, targets, tokens)
    ids = jnp.asarray(tokens, jnp.int32)
    steered = ~np.isin(tokens, special)
    if positions == "last":
        steered[:, :-1] = False
    if not steered.any():
        raise UserError("no prompt has a position to steer; write prompts that end in no special token")
    vectors = _vectors(rows, targets, alpha, controls, np.random.default_rng(seed))
    members = [_members(target, model.vocab) for target in targets]
    effects = np.full((len(targets), 1 + controls, len(tokens), len(KINDS)), np.nan)
    keep = jnp.asarray(np.isin(tokens, special))
    for start in range(0, len(tokens), batch):
        part = slice(start, start + batch)
        base, logits = _spliced(model, layer, replace, ids[part], keep[part])
        for t, own in enumerate(vectors):
            for v, vector in enumerate(own):
                change = _change(model, layer, base, logits, vector, jnp.asarray(steered[part]), members[t])
                effects[t, v, part] = np.asarray(change)
    effects[:, :, ~steered.any(axis=1)] = np.nan
    for t, target in enumerate(targets):
        effects[t, ..., _empty(target, model.vocab)] = np.nan
        if not rows[target.latent].any():
            effects[t] = np.nan
    return _summary([t.latent for t in targets], effects)


def _vectors(
    rows: np.ndarray, targets: Sequence[SteeringTarget], alpha: float, controls: int, rng: np.random.Generator
) -> Float[Array, "targets directions embed"]:
    """For each target alpha times its row, then random directions of the same norm."""
    own = rows[[t.latent for t in targets]].astype(np.float64)[:, None]
    random = rng.normal(size=(len(own), controls, rows.shape[1]))
    random *= np.linalg.norm(own, axis=2, keepdims=True) / np.linalg.norm(random, axis=2, keepdims=True)
    return jnp.asarray(alpha * np.concatenate([own, random], axis=1), jnp.float32)


@eqx.filter_jit
def _spliced(
    model: AbstractLM,
    layer: int,
    replace: Replace,
    ids: Int[Array, "batch seq"],
    keep: Bool[Array, "batch seq"],
) -> tuple[Array, Array]:
    """The replaced stream, and the logits that follow from it."""
    base = replaced(replace, model.residual(ids, layer), keep)
    return base, model.logits_from(base, layer)


@eqx.filter_jit
def _change(
    model: AbstractLM,
    layer: int,
    base: Float[Array, "batch seq embed"],
    logits: Float[Array, "batch seq vocab"],
    vector: Float[Array, " embed"],
    steered: Bool[Array, "batch seq"],
    members: Float[Array, "kinds vocab"],
) -> Float[Array, "batch kinds"]:
    """The change of each group's mean logit less that of the vocabulary's, averaged over the steered positions."""
    change = model.logits_from(jnp.where(steered[..., None], base + vector, base), layer) - logits
    by_group = relative(change, members)
    count = jnp.maximum(jnp.sum(steered, axis=1), 1)[:, None]
    return jnp.sum(by_group * steered[..., None], axis=1) / count


def relative(change: Float[Array, "*some vocab"], members: Float[Array, "kinds vocab"]) -> Float[Array, "*some kinds"]:
    """The change of each group's mean logit, less that of the whole vocabulary, which the softmax does not see.

    Args:
        change: of the logits.
        members: a row of weights per group, which add up to 1.
    """
    return jnp.einsum("...v,kv->...k", change - jnp.mean(change, axis=-1, keepdims=True), members)


def _summary(latents: list[int], effects: np.ndarray) -> dict[str, Any]:
    """From effects [latents, directions, prompts, kinds]."""
    some = np.isfinite(effects)
    counts = some.sum(axis=2)
    means = np.where(counts > 0, np.where(some, effects, 0).sum(axis=2) / np.maximum(counts, 1), np.nan)
    named = {kind: means[..., i] for i, kind in enumerate(KINDS)}
    named["selectivity"] = named["target"] - named["siblings"]
    result: dict[str, Any] = {name: measured(latents, m[:, 0], m[:, 1:].T, True) for name, m in named.items()}
    by_prompt = [[float(v) if np.isfinite(v) else None for v in row] for row in effects[:, 0, :, 0]]
    return result | {"by_prompt": by_prompt}


def _members(target: SteeringTarget, vocab: int) -> Float[Array, "kinds vocab"]:
    """One row of equal weights per group of tokens, which add up to 1; zeros for an empty one."""
    weights = np.zeros((len(KINDS), vocab), np.float32)
    weights[0, list(target.tokens)] = 1
    weights[1, list(set(target.siblings) - set(target.tokens))] = 1
    weights[2] = 1 - weights[0] - weights[1]
    return jnp.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1))


def _empty(target: SteeringTarget, vocab: int) -> list[int]:
    """The groups without a token."""
    own, others = set(target.tokens), set(target.siblings) - set(target.tokens)
    sizes = (len(own), len(others), vocab - len(own) - len(others))
    return [i for i, size in enumerate(sizes) if not size]


def _siblings(latent: int, tree: Forest | None, features: int) -> np.ndarray:
    if tree is None or latent < tree.roots:
        first = next(iter(groups(tree, features).values()))
        return np.arange(first.start, first.stop)
    return np.flatnonzero(tree.parents == tree.parents[latent])


def _check_latent(latent: int, rows: np.ndarray) -> None:
    if not 0 <= latent < len(rows):
        raise UserError(f"latent is {latent}, but there are {len(rows)}; write one from 0 to {len(rows) - 1}")


def _check(model: AbstractLM, rows: np.ndarray, targets: Sequence[SteeringTarget], tokens: np.ndarray) -> None:
    if rows.shape[1] != model.embed:
        raise UserError(
            f"the rows have {rows.shape[1]} numbers, but the residual stream {model.embed}; write the dictionary of an "
            "SAE of this model"
        )
    if not targets or not tokens.size:
        raise UserError("there is nothing to steer; write at least one target and one prompt")
    for target in targets:
        _check_latent(target.latent, rows)
        for token in (*target.tokens, *target.siblings):
            if not 0 <= token < model.vocab:
                raise UserError(f"token is {token}, but the vocabulary has {model.vocab}; write tokens of this model")
