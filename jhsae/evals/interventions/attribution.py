"""Attribution of a logit difference to latents: gradient times activation, checked against the true effect.

With m the difference of two logits at the last token, F the part of the stream that the latents write,
``F_t = sum_i c_ti row_i``, and ``stream(a) = base - (1 - a) F``, latent i at token t has the attribution
``c_ti row_i . g_t``, where g is the gradient of m: at the stream as it is (`AtStream`; attribution patching, Syed et
al., arXiv 2310.10348), or its mean over a from 0 to 1 (`AlongPath`; integrated gradients, Sundararajan et al., arXiv
1703.01365). The sum over latents and tokens is compared with ``m(base) - m(base - F)``, the effect of ablating all of
them at once; along the path the two are equal but for the quadrature. With the error term dropped and no decoder bias
the path ends in a stream of zeros, where no norm is smooth: `Attribution.gap` says so. Statistics of the normaliser are
held fixed.
"""

import abc
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jhsae.codes import Codes
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.evals.interventions.edits import Ablate
from jhsae.evals.interventions.model import Read, SplicedLM, in_lm_units, logits_at
from jhsae.evals.interventions.prompts import Prompts, token_id
from jhsae.lm import AbstractLM
from jhsae.ranges import Count, Ranged, ranged
from jhsae.sae import AbstractSAE


class AbstractPath(Ranged, eqx.Module):
    """The points at which the gradient is taken, and their weights, which add up to 1."""

    @abc.abstractmethod
    def points(self) -> tuple[tuple[float, float], ...]:
        """(a, weight) of each: 1 is the stream as it is, 0 the one with every latent ablated."""


class AtStream(AbstractPath):
    """The stream as it is: one gradient, whose sum misses how the model saturates."""

    def points(self) -> tuple[tuple[float, float], ...]:
        return ((1.0, 1.0),)


class AlongPath(AbstractPath):
    """Gauss-Legendre points between the stream and the one with every latent ablated.

    Args:
        count: how many gradients are taken.
    """

    count: Count = eqx.field(static=True, default=32)

    def points(self) -> tuple[tuple[float, float], ...]:
        places, weights = np.polynomial.legendre.leggauss(self.count)
        return tuple(zip(((places + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attributions of one prompt.

    Args:
        prompt: its token ids.
        token: the token whose logit is explained.
        than: the one whose logit is subtracted.
        positions: of each entry, in the prompt.
        features: the row of the dictionary of each.
        codes: its code there.
        scores: its attribution, in nats of logit.
        difference: the logit difference.
        effect: by how much it falls where every latent is ablated.
        error_effect: by how much it falls where what the SAE does not reconstruct is left out; 0 where it is dropped.
    """

    prompt: list[int]
    token: int
    than: int
    positions: Int[np.ndarray, " entries"]
    features: Int[np.ndarray, " entries"]
    codes: Float[np.ndarray, " entries"]
    scores: Float[np.ndarray, " entries"]
    difference: float
    effect: float
    error_effect: float

    @property
    def sum(self) -> float:
        """The sum of all attributions, to be compared with `effect`."""
        return float(self.scores.sum())

    @property
    def gap(self) -> float | None:
        """``|sum - effect| / |effect|``; None where the effect is 0."""
        return abs(self.sum - self.effect) / abs(self.effect) if self.effect else None

    def by_latent(self) -> dict[int, float]:
        """The attribution of each active latent over all tokens, the largest in absolute value first."""
        rows, place = np.unique(self.features, return_inverse=True)
        sums = np.bincount(place.reshape(-1), weights=self.scores, minlength=len(rows))
        return {int(rows[i]): float(sums[i]) for i in np.argsort(-np.abs(sums), kind="stable")}


@ranged
def attribute(
    inside: SplicedLM,
    prompt: str | Prompts,
    token: str | int | None = None,
    than: str | int | None = None,
    path: AbstractPath = AlongPath(),  # noqa: B008  (an immutable module)
) -> Attribution:
    """Attributes the difference of two logits at the last token of a prompt to latents.

    Args:
        inside: the language model with the SAE in it.
        prompt: one prompt.
        token: the token whose logit is explained, its text or id; by default the likeliest.
        than: the one whose logit is subtracted; by default the likeliest other one.
        path: where the gradient is taken.

    Raises:
        UserError: several prompts, no single token, or twice the same.
    """
    found = inside.prompts(prompt)
    if len(found.lengths) != 1:
        raise UserError(f"there are {len(found.lengths)} prompts, expected 1; attribute each by itself")
    read = inside.read(found)
    base = inside.base(found, read)

    def logits(stream: Array) -> np.ndarray:
        return np.asarray(logits_at(inside.model.model, stream, inside.layer, found.last)[0], np.float64)

    one, other = _pair(inside, logits(base), token, than)
    read_of = (inside.sae, inside.normalizer, read)
    written = jnp.where(found.live[..., None], _written(*read_of), 0.0)
    gradient, pair = jnp.zeros_like(base), (jnp.asarray(one), jnp.asarray(other))
    for place, weight in path.points():
        at = base - (1 - place) * written
        gradient = gradient + weight * _gradient(inside.model.model, at, inside.layer, found.last, *pair)
    scores = _scores(*read_of, jnp.where(found.live[..., None], gradient, 0.0))

    def difference(stream: Array) -> float:
        now = logits(stream)
        return float(now[one] - now[other])

    whole = difference(base)
    without = difference(jnp.where(found.live[..., None], read.x_hat, read.x))
    codes = read.codes.flat()
    values, entries = np.asarray(codes.values), np.asarray(codes.slot_indices())
    active = (values != 0) & np.asarray(found.live)[0][:, None]
    return Attribution(
        prompt=found.tokens(0),
        token=one,
        than=other,
        positions=np.nonzero(active)[0],
        features=entries[active],
        codes=values[active],
        scores=np.asarray(scores, np.float64)[active],
        difference=whole,
        effect=whole - difference(base - written),
        error_effect=whole - without,
    )


def ablation_effects(inside: SplicedLM, prompt: str | Prompts, found: Attribution, latents: list[int]) -> list[float]:
    """By how much the logit difference falls where one latent is ablated at every token, for each of some.

    Args:
        inside: the language model with the SAE in it.
        prompt: that of the attribution.
        found: the attribution, whose two tokens are meant.
        latents: rows of the dictionary.
    """
    prompts = inside.prompts(prompt)
    read, effects = inside.read(prompts), []
    for latent in latents:
        stream = inside.edited(prompts, read, inside.rows({latent: Ablate()}), prompts.live)
        logits = np.asarray(logits_at(inside.model.model, stream, inside.layer, prompts.last)[0], np.float64)
        effects.append(found.difference - float(logits[found.token] - logits[found.than]))
    return effects


def _pair(inside: SplicedLM, logits: np.ndarray, token: str | int | None, than: str | int | None) -> tuple[int, int]:
    order = np.argsort(-logits, kind="stable")
    other = None if than is None else token_id(than, inside.model)
    one = int(next(i for i in order if i != other)) if token is None else token_id(token, inside.model)
    other = int(next(i for i in order if i != one)) if other is None else other
    if one == other:
        raise UserError(f"token and than are both token {one}, whose logits do not differ; write two tokens")
    return one, other


@eqx.filter_jit
def _written(sae: AbstractSAE, normalizer: AbstractNormalizer, read: Read) -> Float[Array, "prompts time embed"]:
    """What the latents write into the stream: the reconstruction without its bias and the normaliser's shift."""
    codes = read.codes.flat()
    nothing = Codes(jnp.zeros_like(codes.values), codes.indices, codes.size)
    inside = sae.decode(Codes(codes.values, codes.indices, codes.size)) - sae.decode(nothing)
    return in_lm_units(normalizer, inside, read.token).reshape(read.x.shape)


@eqx.filter_jit
def _gradient(
    model: AbstractLM, stream: Float[Array, "1 time embed"], layer: int, last: Int[Array, "1"], one: Any, other: Any
) -> Float[Array, "1 time embed"]:
    def difference(stream: Array) -> Array:
        logits = model.logits_at(stream, layer, last)[0]
        return logits[one] - logits[other]

    return jax.grad(difference)(stream)


@eqx.filter_jit
def _scores(
    sae: AbstractSAE, normalizer: AbstractNormalizer, read: Read, gradient: Float[Array, "1 time embed"]
) -> Float[Array, "tokens slots"]:
    """``c_ti row_i . g_t`` for every slot of the codes."""
    rows = gradient.reshape(-1, gradient.shape[-1])
    _, back = jax.vjp(lambda inside: in_lm_units(normalizer, inside, read.token), jnp.zeros_like(rows))
    inside, codes, dictionary = back(rows)[0], read.codes.flat(), sae.dictionary()
    if codes.indices is None:
        return codes.values * (inside @ dictionary.T)
    return codes.values * jnp.einsum("tse,te->ts", dictionary[codes.indices], inside)
