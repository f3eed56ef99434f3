"""The config of ``jhsae ablate``: what is varied, what is matched, and what it is measured on."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, MinLen

from jhsae.errors import UserError
from jhsae.ranges import Count, Natural, Positive, PositiveFraction, Seed, Words, ranged

Budget = Literal["l0", "parameters", "macs", "tokens"]
ALL = "all"


@ranged
@dataclass(frozen=True)
class Pole:
    """A complete design, from which single choices are flipped."""

    train: Annotated[Words, "its config of jhsae train"]
    overrides: Annotated[list[str], "overrides of it"] = field(default_factory=list)


@ranged
@dataclass(frozen=True)
class Value:
    """A value of an axis that is not the same at every pole; one that is, is a list of overrides."""

    set: Annotated[list[str], "overrides of a pole"] = field(default_factory=list)
    at: Annotated[dict[str, list[str]], "pole -> overrides there, instead of set"] = field(default_factory=dict)
    not_for: Annotated[dict[str, str], "pole, or 'all' -> why it does not apply there"] = field(default_factory=dict)


def as_value(value: list[str] | Value) -> Value:
    """A value of an axis in its long form."""
    return value if isinstance(value, Value) else Value(value)


@ranged
@dataclass(frozen=True)
class Search:
    """Random search: every arm draws a value of each axis, or the pole's own."""

    count: Annotated[Count, "arms per pole"]
    axes: Annotated[list[Words], "axes that are drawn; empty: all"] = field(default_factory=list)
    seed: Annotated[Seed, "of the draws"] = 0


@ranged
@dataclass(frozen=True)
class Ablate:
    """What is varied. With `train` every variant is evaluated as it is; with `poles` each gets its own best rate."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset({"processes"})
    LATER: ClassVar[dict[str, Any]] = {
        "poles": {}, "flips": None, "grid": [], "search": None, "rates": [], "more_rates": 2, "off_l0": 0.1,
        "match": None, "solve": [], "reference": None, "validation": 0.25, "truth": None,
    }  # fmt: skip

    out: Annotated[Words, "folder of the runs and their results.jsonl"]
    train: Annotated[Words | None, "the base config of jhsae train; null where there are poles"] = None
    axes: Annotated[dict[str, dict[str, list[str] | Value]], "axis -> variant -> overrides of the base"] = field(
        default_factory=dict
    )
    seeds: Annotated[list[Seed], MinLen(1), "one run per variant and seed"] = field(default_factory=lambda: [0, 1, 2])
    store: Annotated[Words | None, "held-out store on which every run is evaluated"] = None
    lm: Annotated[Words | None, "language model to splice into; null for none"] = None
    overrides: Annotated[list[str], "overrides of the base that every run shares"] = field(default_factory=list)
    rows: Annotated[Count | None, "held-out activations to use; null for all"] = None
    sequences: Annotated[Count, "held-out sequences for the cross-entropy"] = 64
    table: Annotated[list[str], "metrics that the table shows"] = field(
        default_factory=lambda: ["ev_r2", "ce_recovered", "l0", "dead"]
    )
    poles: Annotated[dict[str, Pole], "name -> design from which axes are flipped, instead of train"] = field(
        default_factory=dict
    )
    flips: Annotated[list[Words] | None, "axes flipped one at a time; null for all"] = None
    grid: Annotated[list[Words], "axes whose values are crossed in full"] = field(default_factory=list)
    search: Annotated[Search | None, "random search over axes"] = None
    rates: Annotated[list[Positive], "peaks of the learning rate tried for every arm; empty: as configured"] = field(
        default_factory=list
    )
    more_rates: Annotated[Natural, "further peaks tried on each side while the best is at that edge"] = 2
    off_l0: Annotated[PositiveFraction, "part by which an arm may miss a matched budget, or a rate its L0"] = 0.1
    match: Annotated[Budget | None, "budget of the reference that every arm gets"] = None
    solve: Annotated[list[Words], "keys by which it is matched; of each arm the first that it has"] = field(
        default_factory=list
    )
    reference: Annotated[Words | None, "the pole whose budget it is; null for each arm's own"] = None
    validation: Annotated[PositiveFraction, "part of the held-out sequences on which rates and sizes are chosen"] = 0.25
    truth: Annotated[Words | None, "or, instead of a store, the world (jhsae world) of all runs"] = None
    processes: Annotated[int, Ge(1), "runs at a time, each in a process of its own"] = 1

    def __post_init__(self) -> None:
        if (self.train is None) == (not self.poles):
            given = "neither" if self.train is None else "both"
            raise UserError(f"names {given} of train and poles; write train=CONFIG, or poles, and not the other")
        if (self.store is None) == (self.truth is None):
            given = "neither" if self.store is None else "both"
            raise UserError(f"names {given} of store and truth; write store=FOLDER, or truth=WORLD, and not the other")
        if self.poles:
            _check_study(self)
        else:
            _check_plain(self)


def _check_plain(config: Ablate) -> None:
    """Raises `UserError` for keys that are about poles."""
    if config.store is None:
        raise UserError(
            "train is evaluated on a store; write store=FOLDER, and lm=MODEL where there is one, or name poles"
        )
    changed = [name for name, default in Ablate.LATER.items() if getattr(config, name) != default]
    changed += ["processes"] if config.processes != 1 else []
    changed += [f"axes.{a}.{v}.set" for a, vs in config.axes.items() for v, o in vs.items() if isinstance(o, Value)]
    if changed:
        raise UserError(f"{', '.join(changed)} needs poles; write poles={{base: {{train: {config.train}}}}}, no train")


def _check_study(config: Ablate) -> None:
    """Raises `UserError` for names of axes and poles that there are not, and for budgets that cannot be matched."""
    for key, names in {"flips": config.flips or [], "grid": config.grid, "search.axes": _searched(config)}.items():
        for name in names:
            if name not in config.axes:
                raise UserError(f"{key} names the axis {name}, expected one of {', '.join(config.axes) or 'none'}")
    if config.reference is not None and config.reference not in config.poles:
        raise UserError(f"reference is {config.reference}, expected one of the poles {', '.join(config.poles)}")
    for axis, values in config.axes.items():
        for name, value in values.items():
            named = as_value(value)
            if unknown := {*named.not_for, *named.at} - {*config.poles, ALL}:
                raise UserError(
                    f"axes.{axis}.{name} names {', '.join(sorted(unknown))}, expected poles "
                    f"({', '.join(config.poles)}) or '{ALL}'"
                )
    if config.match in ("l0", "parameters", "macs") and not config.solve:
        raise UserError(f"match is {config.match}, but solve names no key; write solve=[sae.route.k] or so")
    if len(set(config.rates)) != len(config.rates):
        raise UserError(f"rates is {config.rates}, which holds a peak twice; write each once")


def _searched(config: Ablate) -> list[str]:
    return config.search.axes if config.search else []
