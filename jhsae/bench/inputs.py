"""The inputs of a benchmark: sizes, implementations of our side, and a batch of unit vectors.

Each vector is the sum of a few directions, some of which are far more common: some experts are busy and others idle, as
on text. A code that lies on a threshold, or two that tie, may be selected by one program and not by another that sums
in another order, and then gradients differ by a whole token; so rows are drawn in excess, and those whose selections
are closest to a tie are left out.
"""

from argparse import Namespace
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jhsae import ops
from jhsae.bench.original import SLOPE
from jhsae.errors import UserError
from jhsae.sae import HierarchicalSAE


@dataclass(frozen=True)
class Shape:
    """Sizes of a hierarchical SAE and of its batch. Raises `UserError` for sizes that are inconsistent."""

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
    def of(cls, flags: Namespace) -> "Shape":
        """Sizes from the flags."""
        return cls(flags.embed, flags.experts, flags.batch, flags.sub, flags.atoms, flags.k)

    @property
    def offset(self) -> float:
        """The threshold of a code: the RMS coordinate of a unit vector."""
        return self.embed**-0.5


@dataclass(frozen=True)
class Build:
    """Implementations used by our SAEs; None is the default of the part."""

    kernel: str | None = None
    chunk: int | None = None
    topk: str | None = None

    def __post_init__(self) -> None:
        _check_choice("kernel", self.kernel, get_args(ops.Kernel))
        _check_choice("topk", self.topk, get_args(ops.Method))
        if self.chunk is not None and self.chunk < 1:
            raise UserError(f"chunk is {self.chunk}, expected at least 1 token; write --chunk 1 or more")

    @classmethod
    def of(cls, flags: Namespace) -> "Build":
        """Choices from the flags."""
        return cls(flags.kernel, flags.chunk, flags.topk)

    @property
    def select(self) -> dict[str, Any]:
        """Arguments of a top-k sparsifier."""
        return _without_none(topk=self.topk)

    @property
    def compute(self) -> dict[str, Any]:
        """Arguments of an SAE."""
        return _without_none(kernel=self.kernel, chunk=self.chunk)


def _check_choice(name: str, choice: str | None, known: tuple[str, ...]) -> None:
    if choice is not None and choice not in known:
        raise UserError(f"{name} is '{choice}', expected one of {', '.join(known)}; write --{name} {known[0]}")


def _without_none(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


SUMMANDS, NOISE, CHUNK, EXCESS = 12, 0.3, 256, 1.25


class ExpertUse(NamedTuple):
    """Use of the experts of the initial SAE on the batch."""

    parents_per_token: float
    experts_over_threshold: float
    busiest_over_mean: float
    idle_share: float


def random_rows(rows: int, embed: int, seed: int = 0) -> Float32[np.ndarray, "rows embed"]:
    """Unit rows: sums of 12 of 4 x embed directions, the i-th with probability proportional to 1 / (i + 10)."""
    rng = np.random.default_rng([seed, embed])
    directions = _unit(rng.standard_normal((4 * embed, embed), np.float32))
    common = 1 / (np.arange(len(directions)) + 10)
    out = np.empty((rows, embed), np.float32)
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        chosen = rng.choice(len(directions), (size, SUMMANDS), p=common / common.sum())
        sums = np.einsum("rp,rpd->rd", rng.random((size, SUMMANDS), np.float32), directions[chosen])
        noise = NOISE * _unit(rng.standard_normal((size, embed), np.float32))
        out[start : start + size] = _unit(sums + noise)
    return out


def make_batch(shape: Shape, sae: HierarchicalSAE) -> tuple[Float32[np.ndarray, "batch embed"], ExpertUse]:
    """The batch, and the use of the experts of the initial `sae` (the faithful one) on it."""
    rows = random_rows(int(shape.batch * EXCESS) + 1, shape.embed)
    look = partial(_selections, k=shape.k, offset=shape.offset)
    with jax.default_matmul_precision("highest"):
        seen = [jax.device_get(look(sae, jnp.asarray(rows[i : i + CHUNK]))) for i in range(0, len(rows), CHUNK)]
    margins, indices, over = (np.concatenate(part) for part in zip(*seen, strict=True))
    kept = np.sort(np.argsort(-margins, kind="stable")[: shape.batch])
    used = indices[kept]
    counts = np.bincount(used[used >= 0], minlength=shape.experts)
    load = ExpertUse(
        float((used >= 0).sum(axis=1).mean()),
        float(over[kept].mean()),
        float(counts.max() / max(counts.mean(), 1e-9)),
        float((counts == 0).mean()),
    )
    return rows[kept], load


@eqx.filter_jit
def _selections(
    sae: HierarchicalSAE, x: Float[Array, "rows embed"], k: int, offset: float
) -> tuple[Array, Array, Array]:
    """The margin of each row's selections, its active experts (-1: none), and the number above the threshold.

    Plain arithmetic, so that no implementation under test selects its own test data.
    """
    router_enc, down, atom_enc = sae.encoders()
    pre = x @ router_enc.T
    ranked, indices = jax.lax.top_k(jnp.where(pre >= offset, pre, 0.0), min(k + 1, pre.shape[1]))
    values, indices = ranked[:, :k], indices[:, :k]
    hidden = jnp.einsum("bd,bksd->bks", x, down[indices])
    atoms = jnp.einsum("bks,bkas->bka", hidden, atom_enc[indices])
    best, _ = jax.lax.top_k(jnp.where(atoms >= offset, atoms, SLOPE * atoms), min(2, atoms.shape[-1]))
    margins = [
        _min_abs(pre - offset),
        _min_abs((atoms - offset).reshape(len(x), -1)),
        _gap(values[:, -1], ranked[:, -1], pre.shape[1] > k),
        jnp.min(_gap(best[..., 0], best[..., -1], atoms.shape[-1] > 1), axis=-1),
    ]
    margin = jnp.min(jnp.stack(margins), axis=0)
    return margin, jnp.where(values > 0, indices, -1), jnp.sum(pre >= offset, axis=-1)


def _gap(last_in: Array, first_out: Array, left_out: bool) -> Array:
    """Distance of the first entry left out; slots of value 0 may swap."""
    return jnp.where(left_out & (last_in != 0), last_in - first_out, jnp.inf)


def _min_abs(a: Float[Array, "rows n"]) -> Float[Array, "rows"]:
    return jnp.min(jnp.abs(a), axis=-1)


def _unit(a: Float32[np.ndarray, "rows embed"]) -> Float32[np.ndarray, "rows embed"]:
    return a / np.linalg.norm(a, axis=1, keepdims=True)
