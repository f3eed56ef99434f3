"""``jhsae bench step``: our training step against the original's, on the same parameters and the same batch.

First both are held equal, loss and gradients; then they are timed, interleaved in this process. One update of ours is
gradients, projection, clipping, Adam, renormalisation and usage statistics; one of the original's is the same and its
tracker.
"""

from argparse import Namespace
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.bench import equality, ours
from jhsae.bench.batch import make_batch
from jhsae.bench.machine import check_writable, load_average, machine, write
from jhsae.bench.memory import Memory
from jhsae.bench.original import CLIP, L1, ORTHOGONALITY, PARENTS_ONLY, RATE
from jhsae.bench.ours import Training
from jhsae.bench.shape import Build, Shape
from jhsae.bench.table import step_table
from jhsae.bench.theirs import OriginalTraining, memory_at
from jhsae.bench.timing import Spread, Times, check_rounds, interleave
from jhsae.errors import UserError


@dataclass(frozen=True)
class Step:
    """What to measure.

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
    """Measures, prints the table, writes the JSON, and returns whether both sides computed the same."""
    check_writable(words.json)
    config = Step(Shape.of(words), Build.of(words), words.repeats, words.seconds, words.variants, words.original_batch)
    result = measure(config)
    print(step_table(result))
    write(result, words.json)
    return result.get("equal", True)


def measure(config: Step) -> dict[str, Any]:
    """The whole result as plain data."""
    shape, before = config.shape, load_average()
    sae, objective = ours.faithful(shape, config.build)
    rows, load = make_batch(shape, sae)
    batch = jnp.asarray(rows)
    fewer = batch[: config.original_tokens]
    errors = equality.compare(sae, objective, fewer, shape.k) if len(fewer) else None
    programs: dict[str, Training | OriginalTraining] = {"ours": Training(sae, objective, batch)}
    if len(fewer):
        programs["original"] = OriginalTraining(equality.to_original(sae), fewer, shape.k)
    if config.variants:
        programs |= _variants(config, batch)
    times = interleave(programs, config.repeats, config.seconds)
    memory = {name: program.memory for name, program in programs.items()}
    if 0 < len(fewer) < shape.batch:
        memory["original"] = memory_at(equality.to_original(sae), shape.batch, shape.k)
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
        **machine(),
    }


def _variants(config: Step, batch: Float[Array, "batch embed"]) -> dict[str, Training]:
    """Our corrected step, and TopK SAEs with as many features as there are experts, and as experts and atoms."""
    shape, build = config.shape, config.build
    wide = shape.experts * (1 + shape.atoms)
    return {
        "scale": Training(*ours.scale(shape, build), batch),
        "flat": Training(*ours.flat(shape, build, shape.experts, shape.k), batch),
        _wide(shape): Training(*ours.flat(shape, build, wide, 2 * shape.k), batch),
    }


def _wide(shape: Shape) -> str:
    return f"flat_{1 + shape.atoms}"


def _against(times: Times, memory: dict[str, Memory], errors: equality.Errors, tokens: float) -> dict[str, Any]:
    """The comparison with the original; `tokens`: how many times more of them our update has."""
    pairs = zip(times.seconds["original"], times.seconds["ours"], strict=True)
    return {
        **_ratio("speedup", Spread.of([tokens * a / b for a, b in pairs])),
        "memory_ratio": memory["original"].total / memory["ours"].total,
        "temp_ratio": memory["original"].temp / max(memory["ours"].temp, 1),
        "loss_error": errors.loss,
        "gradient_error": errors.gradient,
        "gradient_errors": errors.gradients,
        "equal": errors.equal,
    }


def _between(times: Times, wide: str) -> dict[str, float]:
    return {
        **_ratio("over_flat", times.ratio("ours", "flat")),
        **_ratio(f"under_{wide}", times.ratio(wide, "ours")),
        **_ratio("scale_over_ours", times.ratio("scale", "ours")),
    }


def _ratio(name: str, spread: Spread) -> dict[str, float]:
    return {name: spread.median, f"{name}_min": spread.min, f"{name}_max": spread.max}


def _settings(config: Step) -> dict[str, Any]:
    weights = {"parents_only": PARENTS_ONLY, "l1": L1, "orthogonality": ORTHOGONALITY}
    return asdict(config.build) | {
        "clip": CLIP,
        "learning_rate": RATE,
        "weights": weights,
        "matmul_precision": jax.config.values.get("jax_default_matmul_precision") or "default",
    }
