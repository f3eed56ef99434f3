"""Rotary positions: pair i of a head turns by position * frequency_i, frequency_i = theta^(-i / pairs).

Scalings stretch a model's context by slowing pairs down: `LinearRope` all alike, `Llama3Rope` those that turn fewer
than `low_freq_factor` times within the original context fully, those above `high_freq_factor` turns not at all, and
those between in proportion. Sources: Su et al. 2021, arXiv 2104.09864; Llama 3, arXiv 2407.21783, and transformers'
modeling_rope_utils. The field names are those of config.json.
"""

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from math import pi
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.errors import UserError, nearest
from jhsae.lm.settings import real, whole


@dataclass(frozen=True)
class AbstractRope(ABC):
    """`rope_theta` is the base of the frequencies."""

    rope_type: ClassVar[str]
    rope_theta: float = 10000.0

    @abstractmethod
    def frequencies(self, pairs: int) -> Float[Array, " pairs"]:
        """Radians per position of each pair."""

    def to_hugging_face(self) -> dict[str, Any]:
        """The rope_parameters of config.json."""
        return {"rope_type": self.rope_type, **vars(self)}


@dataclass(frozen=True)
class Rope(AbstractRope):
    """No scaling."""

    rope_type: ClassVar[str] = "default"

    def frequencies(self, pairs: int) -> Float[Array, " pairs"]:
        return self.rope_theta ** (-jnp.arange(pairs) / pairs)


@dataclass(frozen=True, kw_only=True)
class LinearRope(AbstractRope):
    """Every pair turns `factor` times slower."""

    rope_type: ClassVar[str] = "linear"
    factor: float

    def frequencies(self, pairs: int) -> Float[Array, " pairs"]:
        return Rope(self.rope_theta).frequencies(pairs) / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(AbstractRope):
    """Slow pairs turn `factor` times slower, fast ones as before."""

    rope_type: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def frequencies(self, pairs: int) -> Float[Array, " pairs"]:
        plain = Rope(self.rope_theta).frequencies(pairs)
        turns = self.original_max_position_embeddings * plain / (2 * pi)
        kept = jnp.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return plain * (kept + (1 - kept) / self.factor)


KINDS: dict[str, type[AbstractRope]] = {kind.rope_type: kind for kind in (Rope, LinearRope, Llama3Rope)}
KEYS = {"rope_type", "type", "partial_rotary_factor"} | {f.name for kind in KINDS.values() for f in fields(kind)}


def rope_settings(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """The rope of a parsed config.json, in either spelling; empty where it has none."""
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{source}: the rope parameters are {str(rope)[:80]!r}, expected an object such as {{}}")
    return rope


def from_hugging_face(
    settings: dict[str, Any], source: str, theta: str = "rope_theta", partial: bool = False
) -> AbstractRope:
    """The rope of a parsed config.json, in either spelling (rope_parameters; or rope_scaling beside `theta`).

    `partial`: the family rotates a part of each head.
    """
    rope = dict(rope_settings(settings, source))
    name = str(rope.get("rope_type", rope.get("type", "default")))
    if name not in KINDS:
        raise UserError(f"{source}: rope_type is {name!r}, supported: {', '.join(KINDS)}{nearest(name, KINDS)}")
    if unknown := sorted(set(rope) - KEYS):
        raise UserError(f"{source}: the rope parameters hold {unknown[0]!r}, which is not supported")
    if not partial and rope.get("partial_rotary_factor") not in (None, 1.0):
        raise UserError(
            f"{source}: partial_rotary_factor is {str(rope['partial_rotary_factor'])[:80]}, only 1.0 is supported"
        )
    rope.setdefault("rope_theta", settings.get(theta, 10000.0))
    original = "original_max_position_embeddings"
    for key in (original, "max_position_embeddings"):
        if key in settings:
            rope.setdefault(original, settings[key])
    if settings.get(original, rope.get(original)) != rope.get(original):
        raise UserError(f"{source}: {original} is {settings[original]} and {rope[original]}; write it once")
    kind = KINDS[name]
    missing = [f.name for f in fields(kind) if f.name not in rope and f.default is MISSING]
    if missing:
        raise UserError(f"{source}: rope_type {name!r} needs {', '.join(missing)}; write them into rope_parameters")
    # Whole numbers in JSON are read as int.
    made = kind(
        **{f.name: whole(rope, f.name, source) if f.type is int else real(rope, f.name, source, above=0.0)
           for f in fields(kind)}
    )  # fmt: skip
    if isinstance(made, Llama3Rope) and made.low_freq_factor == made.high_freq_factor:
        raise UserError(
            f"{source}: high_freq_factor equals low_freq_factor, {made.low_freq_factor}; write a greater one"
        )
    return made
