"""``jhsae bench step``: our training step against the original's, on the same parameters and the same batch.

First loss and gradients of both are compared; then both are timed, interleaved in this process. One update of ours is
gradients, projection, clipping, Adam, renormalisation and feature statistics; one of the original's is the same and its
tracker. The error of a leaf's gradient is its maximum absolute difference over the maximum absolute entry of the
original's gradient.
"""

from argparse import Namespace
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.bench import original, ours
from jhsae.bench.inputs import Build, Shape, make_batch
from jhsae.bench.measurement import (
    MedianRange,
    Memory,
    Timings,
    check_rounds,
    check_writable,
    environment,
    interleave,
    load_average,
    write,
)
from jhsae.bench.original import CLIP, L1, ORTHOGONALITY, PARENTS_ONLY, RATE, Original, OriginalTraining, memory_at
from jhsae.bench.ours import Training
from jhsae.bench.table import step_table
from jhsae.errors import UserError
from jhsae.losses import Objective
from jhsae.sae import Context, HierarchicalSAE

BOUND = 1e-4  # above it the two functions differ


class Errors(NamedTuple):
    """`loss` relative; `gradients` of every leaf, by the original's name."""

    loss: float
    gradients: dict[str, float]

    @property
    def gradient(self) -> float:
        """The worst leaf's."""
        return max(self.gradients.values())

    @property
    def equal(self) -> bool:
        """NaN is not equal."""
        return self.loss <= BOUND and all(error <= BOUND for error in self.gradients.values())


def to_original(sae: HierarchicalSAE) -> Original:
    """Parameters, or gradients, in the original's layouts."""
    router_enc, down, atom_enc = sae.encoders()
    up, atom_dec = jnp.swapaxes(sae.up, 1, 2), jnp.swapaxes(sae.atom_dec, 1, 2)
    leaves = (router_enc, sae.router_dec.T, down, up, atom_enc, atom_dec)
    return Original(*(jnp.array(leaf, copy=True) for leaf in leaves))


def compare_gradients(sae: HierarchicalSAE, objective: Objective, x: Float[Array, "batch embed"], k: int) -> Errors:
    """Compares loss and gradients with the original's, at the highest matmul precision."""
    with jax.default_matmul_precision("highest"):
        theirs, gradients = _original_gradients(to_original(sae), x, k)
        ours, here = _our_gradients(sae, objective, x)
        leaves = jax.device_get(_leaf_errors(to_original(here), gradients))
    return Errors(float(abs(ours - theirs) / abs(theirs)), {n: float(e) for n, e in leaves._asdict().items()})


@partial(jax.jit, static_argnums=2)
def _original_gradients(params: Original, x: Array, k: int) -> tuple[Array, Original]:
    (value, _), grads = jax.value_and_grad(original.loss, has_aux=True)(params, x, k)
    return value, grads


@eqx.filter_jit
def _our_gradients(sae: HierarchicalSAE, objective: Objective, x: Array) -> tuple[Array, HierarchicalSAE]:
    def loss(sae: HierarchicalSAE) -> Float[Array, ""]:
        return objective(sae, sae.forward(x, Context(jax.random.key(0))), 0)[0]

    return eqx.filter_value_and_grad(loss)(sae)


@jax.jit
def _leaf_errors(ours: Original, theirs: Original) -> Original:
    return jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), ours, theirs)


@dataclass(frozen=True)
class StepBench:
    """Settings of ``jhsae bench step``.

    `original_batch`: tokens of the original's update where the whole batch does not fit, and of the comparison; the
    ratio is then that of the times per token; 0 leaves the original out. `variants` adds our other steps to the rounds.
    """

    shape: Shape
    build: Build = field(default_factory=Build)
    repeats: int = 9
    seconds: float = 120.0
    variants: bool = False
    original_batch: int | None = None

    def __post_init__(self) -> None:
        check_rounds(self.repeats, self.seconds)
        if not 0 <= self.original_tokens <= self.shape.batch:
            raise UserError(
                f"original-batch is {self.original_batch}, expected 0 to {self.shape.batch}, the batch; leave it out"
            )

    @property
    def original_tokens(self) -> int:
        """Tokens of one update of the original."""
        return self.shape.batch if self.original_batch is None else self.original_batch


def command(words: Namespace) -> bool:
    """Runs the verb: measures, prints the table, writes the JSON; returns whether both sides agree."""
    check_writable(words.json)
    config = StepBench(
        Shape.of(words), Build.of(words), words.repeats, words.seconds, words.variants, words.original_batch
    )
    result = measure(config)
    print(step_table(result))
    write(result, words.json)
    return result.get("equal", True)


def measure(config: StepBench) -> dict[str, Any]:
    """Measures and returns the result as plain data."""
    shape, before = config.shape, load_average()
    start = ours.faithful(shape, config.build)
    rows, load = make_batch(shape, start.sae)
    batch = jnp.asarray(rows)
    fewer = batch[: config.original_tokens]
    errors = compare_gradients(start.sae, start.modules.objective, fewer, shape.k) if len(fewer) else None
    programs: dict[str, Training | OriginalTraining] = {"ours": Training(start, batch)}
    if len(fewer):
        programs["original"] = OriginalTraining(to_original(start.sae), fewer, shape.k)
    if config.variants:
        programs |= _variants(config, batch)
    times = interleave(programs, config.repeats, config.seconds)
    memory = {name: program.memory for name, program in programs.items()}
    if 0 < len(fewer) < shape.batch:
        memory["original"] = memory_at(to_original(start.sae), shape.batch, shape.k)
    return {
        "verb": "bench step",
        "shape": asdict(shape),
        "settings": _settings(config),
        **({} if errors is None else _against(times, memory, errors, shape.batch / len(fewer))),
        **(_between(times, _wide(shape)) if config.variants else {}),
        "tokens_per_second": 1000 * shape.batch / times.milliseconds("ours").median,
        "tokens": {name: len(fewer) if name == "original" else shape.batch for name in programs},
        **{f"{name}_ms": asdict(times.milliseconds(name)) for name in programs},
        "rounds": times.rounds,
        "seconds": times.seconds,
        "memory": {name: m.to_dict() for name, m in memory.items()},
        "batch": load._asdict(),
        "load_before": before,
        "load_after": load_average(),
        **environment(),
    }


def _variants(config: StepBench, batch: Float[Array, "batch embed"]) -> dict[str, Training]:
    """Our corrected step, and TopK SAEs with as many features as there are experts, and as experts and atoms."""
    shape, build = config.shape, config.build
    wide = shape.experts * (1 + shape.atoms)
    return {
        "scale": Training(ours.scale(shape, build), batch),
        "flat": Training(ours.flat(shape, build, shape.experts, shape.k), batch),
        _wide(shape): Training(ours.flat(shape, build, wide, 2 * shape.k), batch),
    }


def _wide(shape: Shape) -> str:
    return f"flat_{1 + shape.atoms}"


def _against(times: Timings, memory: dict[str, Memory], errors: Errors, tokens: float) -> dict[str, Any]:
    """The comparison with the original; `tokens`: how many times more of them our update has."""
    pairs = zip(times.seconds["original"], times.seconds["ours"], strict=True)
    return {
        **_ratio("speedup", MedianRange.of([tokens * a / b for a, b in pairs])),
        "memory_ratio": memory["original"].total / memory["ours"].total,
        "temp_ratio": memory["original"].temp / max(memory["ours"].temp, 1),
        "loss_error": errors.loss,
        "gradient_error": errors.gradient,
        "gradient_errors": errors.gradients,
        "equal": errors.equal,
    }


def _between(times: Timings, wide: str) -> dict[str, float]:
    return {
        **_ratio("over_flat", times.ratio("ours", "flat")),
        **_ratio(f"under_{wide}", times.ratio(wide, "ours")),
        **_ratio("scale_over_ours", times.ratio("scale", "ours")),
    }


def _ratio(name: str, spread: MedianRange) -> dict[str, float]:
    return {name: spread.median, f"{name}_min": spread.min, f"{name}_max": spread.max}


def _settings(config: StepBench) -> dict[str, Any]:
    weights = {"parents_only": PARENTS_ONLY, "l1": L1, "orthogonality": ORTHOGONALITY}
    return asdict(config.build) | {
        "clip": CLIP,
        "learning_rate": RATE,
        "weights": weights,
        "matmul_precision": jax.config.values.get("jax_default_matmul_precision") or "default",
    }
