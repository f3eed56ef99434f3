"""The config of one training run: frozen dataclasses that mirror the YAML of ``jhsae train``."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import optax
from annotated_types import Ge, MinLen

from jhsae.config import Slot, Supplied
from jhsae.constraint import AbstractConstraint
from jhsae.data import AbstractNormalizer
from jhsae.data.source import AbstractSource
from jhsae.errors import UserError
from jhsae.init import AbstractInit
from jhsae.losses import AbstractTerm
from jhsae.metric import AbstractMetric
from jhsae.ops import Precision
from jhsae.parallel.mesh import MeshShape
from jhsae.ranges import Count, Natural, Positive, Seed, Words, ranged
from jhsae.resampling import AbstractResampling
from jhsae.sae import AbstractSAE
from jhsae.schedule import AbstractSchedule
from jhsae.training.logs import Sink

OPTIMIZER = Supplied(kind=optax.GradientTransformation, functions=("jhsae.optimizer.adam",))
Schedule = Annotated[Slot | float, Supplied(kind=AbstractSchedule), Ge(0)]
Normalizer = Annotated[Slot, Supplied(kind=AbstractNormalizer)]
Live = Annotated[Slot, Supplied("mesh", kind=AbstractSource)]
Term = Annotated[Slot, Supplied(kind=AbstractTerm)]
Init = Annotated[Slot, Supplied(kind=AbstractInit)]
Metric = Annotated[Slot, Supplied(kind=AbstractMetric)]
Revival = Annotated[Slot, Supplied(kind=AbstractResampling)]
Constraint = Annotated[Slot, Supplied(kind=AbstractConstraint)]


def _part(target: str) -> Any:
    """A slot whose default is the class `target` without arguments."""
    return field(default_factory=lambda: {"_target_": target})


@ranged
@dataclass(frozen=True)
class Data:
    """What is trained on."""

    batch: Annotated[Count, "tokens per step, over all devices"]
    store: Annotated[str | None, "folder of an activation store (jhsae harvest)"] = None
    live: Annotated[Live | None, "or the language model: a part such as jhsae.activations.live.LiveActivations"] = None
    normalize: Annotated[Normalizer, "input normaliser"] = _part("jhsae.data.Identity")
    seed: Annotated[Seed, "order of the rows"] = 0
    streams: Annotated[Count, "parts of a batch that are read apart; on N hosts write N or a multiple of it"] = 1

    def __post_init__(self) -> None:
        if (self.store is None) == (self.live is None):
            given = "both" if self.store is not None else "neither"
            raise UserError(
                f"names {given} of store and live; write data.store=FOLDER, or data.live, and not the other"
            )


@ranged
@dataclass(frozen=True)
class StageConfig:
    """A part of the run with its own learning rate, frozen parameters and weights."""

    name: Annotated[Words, "appears in metrics.jsonl"]
    steps: Annotated[Count, "number of updates"]
    learning_rate: Annotated[Schedule, "a number or a schedule of the step of the whole run"]
    freeze: Annotated[list[Words], "paths or globs of parameters that stay"] = field(default_factory=list)
    weights: Annotated[dict[str, Schedule], "term weights that differ in this stage"] = field(default_factory=dict)
    clip: Annotated[Positive | None, "bound on the global gradient norm; null for none"] = 1.0


@ranged
@dataclass(frozen=True)
class Train:
    """The config of one run: every row of the README's table of slots is a key here."""

    RENAMED: ClassVar[dict[str, str]] = {
        "revival": "resampling", "keep": "max_to_keep", "sampling_window": "feature_sampling_window"
    }  # fmt: skip
    UNHASHED: ClassVar[frozenset[str]] = frozenset(
        {"out", "loggers", "log_every", "checkpoint_every", "max_to_keep", "profile_steps"}
    )
    LATER: ClassVar[dict[str, Any]] = {
        "precision": "float32", "data.streams": 1, "data.live": None, "more": 0, "more_rate": None
    }  # fmt: skip

    out: Annotated[Words, "the run folder"]
    data: Annotated[Data, "store, batch, normaliser"]
    sae: Annotated[Slot, "the SAE and the parts in its slots", Supplied("key", kind=AbstractSAE)]
    objective: Annotated[dict[str, Term], MinLen(1), "loss terms by name"]
    stages: Annotated[list[StageConfig], MinLen(1), "one or more stages, run in order"]
    teacher: Annotated[str | None, "folder of a teacher (jhsae teach); refer to it as ${teacher}"] = None
    weights: Annotated[dict[str, Schedule], "weight (number or schedule) per term, 1 if absent"] = field(
        default_factory=dict
    )
    init: Annotated[list[Init], "initialisers, applied in order"] = field(default_factory=list)
    metric: Annotated[Metric, "refer to it as ${metric}"] = _part("jhsae.metric.Euclidean")
    constraint: Annotated[Constraint, "how decoder rows keep unit norm"] = _part(
        "jhsae.constraint.ProjectAndRenormalize"
    )
    optimizer: Annotated[Slot, "the optax transformation before the learning rate", OPTIMIZER] = _part(
        "jhsae.optimizer.adam"
    )
    seed: Annotated[Seed, "initial parameters and routing noise"] = 0
    mesh: Annotated[MeshShape, "devices for data and experts"] = field(default_factory=MeshShape)
    resampling: Annotated[Revival, "how dead features are resampled"] = _part("jhsae.resampling.NoResampling")
    dead_window: Annotated[Count, "a feature is dead after this many steps without firing"] = 1000
    dead_tokens: Annotated[int | None, Ge(1), "the same in tokens, rounded up to steps; replaces dead_window"] = None
    feature_sampling_window: Annotated[Count, "steps over which the frequency of features is measured"] = 2000
    log_every: Annotated[Count, "steps between rows of metrics.jsonl"] = 10
    precision: Annotated[Precision, "of the hot products; parameters, gradients and sums stay float32"] = "float32"
    checkpoint_every: Annotated[Count, "steps between checkpoints"] = 1000
    max_to_keep: Annotated[Count | None, "newest checkpoints to keep; null keeps all"] = 2
    loggers: Annotated[list[Sink], "tensorboard, wandb"] = field(default_factory=list)
    profile_steps: Annotated[
        list[Count] | None, "[first, last] step of a profiler trace, written to profile/; null for none"
    ] = None
    more: Annotated[Natural, "steps to add to the finished run in `out`, as one more stage like its last"] = 0
    more_rate: Annotated[
        Schedule | None, "learning rate of these; null: constant at that of the last step of the run"
    ] = None

    def __post_init__(self) -> None:
        total, steps = sum(stage.steps for stage in self.stages), self.profile_steps
        if steps is not None and not (len(steps) == 2 and steps[0] <= steps[1] <= total):
            raise UserError(
                f"profile_steps is {steps}, expected the first and the last step to trace, of the {total} "
                f"steps of the run; write profile_steps=[{min(10, total)},{min(12, total)}]"
            )
