"""The sizes of a benchmark, and which implementations our side of it uses."""

from argparse import Namespace
from dataclasses import asdict, dataclass
from typing import Any, get_args

from jhsae import ops
from jhsae.errors import UserError


@dataclass(frozen=True)
class Shape:
    """Sizes of a hierarchical SAE and of its batch. Raises `UserError` for sizes that do not fit."""

    embed: int
    experts: int
    batch: int
    sub: int = 4
    atoms: int = 16
    k: int = 32

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if size < 1:
                raise UserError(f"{name} is {size}, expected at least 1; write --{name} 1 or more")
        if self.experts < 2:
            raise UserError(
                "experts is 1, but the orthogonality penalty is a mean over pairs; write --experts 2 or more"
            )
        if self.k > self.experts:
            raise UserError(f"k is {self.k} but there are {self.experts} experts; write --k {self.experts} or less")

    @classmethod
    def of(cls, words: Namespace) -> "Shape":
        """The shape that flags name."""
        return cls(words.embed, words.experts, words.batch, words.sub, words.atoms, words.k)

    @property
    def offset(self) -> float:
        """What a code must reach: the size of one coordinate of a unit vector."""
        return self.embed**-0.5


@dataclass(frozen=True)
class Build:
    """Which implementations our SAEs use; None leaves a choice to the part's own default."""

    kernel: str | None = None
    chunk: int | None = None
    topk: str | None = None

    def __post_init__(self) -> None:
        _known("kernel", self.kernel, get_args(ops.Kernel))
        _known("topk", self.topk, get_args(ops.Method))
        if self.chunk is not None and self.chunk < 1:
            raise UserError(f"chunk is {self.chunk}, expected at least 1 token; write --chunk 1 or more")

    @classmethod
    def of(cls, words: Namespace) -> "Build":
        """The choices that flags name."""
        return cls(words.kernel, words.chunk, words.topk)

    @property
    def select(self) -> dict[str, Any]:
        """Arguments of a top-k sparsifier."""
        return _given(topk=self.topk)

    @property
    def compute(self) -> dict[str, Any]:
        """Arguments of an SAE."""
        return _given(kernel=self.kernel, chunk=self.chunk)


def _known(name: str, given: str | None, known: tuple[str, ...]) -> None:
    if given is not None and given not in known:
        raise UserError(f"{name} is '{given}', expected one of {', '.join(known)}; write --{name} {known[0]}")


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
