"""Classes that the tests of configs fill from YAML."""

import abc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float

from jhsae.config import Slot, Supplied

HERE = __name__  # slots below name classes of this file


class AbstractPick(eqx.Module):
    """A kind of part."""

    MADE_BY: ClassVar[tuple[str, ...]] = (f"{HERE}.make_top",)

    def __check_init__(self) -> None:
        if getattr(self, "k", 1) < 1:
            raise ValueError("k is below 1; write 1 or more")


class AbstractLoud(AbstractPick):
    """A kind of part that is abstract."""

    @abc.abstractmethod
    def __call__(self) -> str:
        """What it says."""


class Top(AbstractPick):
    k: int = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True, default=())


class Soft(AbstractPick):
    temperature: float = eqx.field(static=True, default=1.0)
    hidden: "OnlyForTypeCheckers" = eqx.field(static=True, default=None)  # type: ignore[name-defined]


class Net(eqx.Module):
    pick: AbstractPick
    more: tuple[AbstractPick, ...]
    weight: Float[Array, "embed"]

    def __init__(self, embed: int, pick: AbstractPick, more: tuple[AbstractPick, ...] = (), *, key: Array) -> None:
        self.pick, self.more = pick, more
        self.weight = jax.random.normal(key, (embed,))


class Broken(AbstractPick):
    def __init__(self) -> None:
        raise KeyError("a bug")


class Held(eqx.Module):
    pick: AbstractPick
    weight: Array


def make_top(k: int = 2) -> Top:
    return Top(k)


def explode() -> None:
    raise KeyError("a bug")


Pick = Annotated[Slot, Supplied("key", kind=AbstractPick, functions=(f"{HERE}.explode",))]


@dataclass(frozen=True)
class Stage:
    steps: Annotated[int, "optimizer steps"]
    rate: float = 0.1


@dataclass(frozen=True)
class Data:
    store: Annotated[Path, "folder of the store"]
    batch: int = 8


@dataclass(frozen=True)
class Run:
    data: Annotated[Data, "activations"]
    net: Annotated[Slot, "the network", Supplied("key", kind=Net)]
    stages: tuple[Stage, ...] = (Stage(10),)
    pick: Pick = field(default_factory=lambda: {"_target_": f"{HERE}.Top", "k": 3})
    terms: dict[str, Pick] = field(default_factory=dict)
    weight: float | Pick | None = None
    mode: Literal["fast", "slow"] = "fast"
    shape: tuple[int, int] = (1, 2)
    notes: dict[str, Any] = field(default_factory=dict)
    out: str = "runs/x"
    log_every: int = 10
    UNHASHED: ClassVar[frozenset[str]] = frozenset({"log_every"})

    def __post_init__(self) -> None:
        if self.shape[0] > self.shape[1]:
            raise ValueError("shape falls; write it rising")


GOOD = f"""\
data: {{store: somewhere}}
net:
  _target_: {HERE}.Net
  embed: 4
  pick: {{_target_: {HERE}.Top, k: 2, sizes: [1, 2]}}
"""
