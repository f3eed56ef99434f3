"""Reconstruction metrics of a trained SAE on held-out activations, in the language model's units.

Three definitions of explained variance are in use; they differ, and are never compared with one another:
``ev_r2 = 1 - sum |x - x_hat|^2 / sum |x - mean x|^2`` (the default), ``ev_saebench``, in which SAEBench 0.6 squares
``mean_d E[x_d^2]`` where |E x|^2 is meant (close to an uncentred R^2), and ``ev_legacy``, the mean of per-token ratios.
In SAELens 6.54 `ev_r2` is called explained_variance and `ev_legacy` explained_variance_legacy.

A ratio per token is averaged over the tokens that have one: `ev_legacy` leaves out those that equal the mean, `cosine`
and `shrinkage` those that are 0. A metric whose denominator is 0 altogether is None, null in JSON.
"""

from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from jhsae.codes import Codes
from jhsae.data.normalize import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.features.latents import density
from jhsae.sae import AbstractSAE, Forest
from jhsae.sae.apply import Reconstruction, reconstruct

ROUNDING = 1e-12  # a variance below this part of the mean square is rounding of float32

Sum = np.ndarray | np.float64
Totals = dict[str, Sum]


@eqx.filter_jit
def _sums(sae: AbstractSAE, normalizer: AbstractNormalizer, x: Array, mean: Array) -> dict[str, Array]:
    x, y = normalizer.split(x)
    return sums_of(sae, reconstruct(sae, normalizer, x), x if y is None else y, mean)


def sums_of(sae: AbstractSAE, made: Reconstruction, x: Array, mean: Array) -> dict[str, Array]:
    """The sums over the rows `x` of all that `metrics_of` needs.

    Args:
        sae: what reconstructed them.
        made: the reconstruction of `x`.
        x: rows in the language model's units, ``[rows, embed]``: what was to be reconstructed.
        mean: the mean of all rows, ``[embed]``.
    """
    x_hat, forward, upper = made
    error = jnp.sum((x - x_hat) ** 2, axis=-1)
    centred = jnp.sum((x - mean) ** 2, axis=-1)
    norms, norms_hat = jnp.linalg.norm(x, axis=-1), jnp.linalg.norm(x_hat, axis=-1)
    product, squared = norms * norms_hat, jnp.sum(x**2, axis=-1)
    cosine = jnp.sum(x * x_hat, axis=-1) / jnp.where(product > 0, product, 1.0)
    varies, nonzero = centred > ROUNDING * squared, norms > 0
    active = _active_by_level(sae, forward.codes.flat())
    macs = sae.encoder_macs(tuple(active))
    return {
        "rows": jnp.asarray(len(x), jnp.float32),
        "error": jnp.sum(error),
        "centred": jnp.sum(centred),
        "varying": jnp.sum(varies.astype(jnp.float32)),
        "nonzero": jnp.sum(nonzero.astype(jnp.float32)),
        "ratio": jnp.sum(jnp.where(varies, error / jnp.where(varies, centred, 1.0), 0.0)),
        "cosine": jnp.sum(cosine),
        "shrinkage": jnp.sum(jnp.where(nonzero, norms_hat / jnp.where(nonzero, norms, 1.0), 0.0)),
        "squared_hat": jnp.sum(x_hat**2),
        "along": jnp.sum(x * x_hat),
        "l0": jnp.sum(forward.codes.l0()),
        "l1": jnp.sum(jnp.abs(forward.codes.flat().values)),
        "fired": forward.codes.fired(),
        "squares": jnp.sum(x**2, axis=0),
        "active": jnp.sum(active, axis=1),
        "error_by_number": jnp.sum((x - x_hat) ** 2, axis=0),
        "centred_by_number": jnp.sum((x - mean) ** 2, axis=0),
        "upper_error": jnp.stack([jnp.zeros(()), *(jnp.sum((x - part) ** 2) for part in upper)])[1:],
        "macs": _sum_over(macs.tables, len(x)),
        "macs_without_tables": _sum_over(macs.plain, len(x)),
    }


def _sum_over(number: Any, tokens: int) -> Float[Array, ""]:
    """The sum of a number of each token, or of one number for all of them; of integers it would overflow."""
    return jnp.sum(jnp.broadcast_to(jnp.asarray(number, jnp.float32), tokens))


def _active_by_level(sae: AbstractSAE, codes: Codes) -> Float[Array, "levels tokens"]:
    """How many rows of each level of the forest are active for each token."""
    levels = len(sae.forest.levels)
    if levels == 1:
        return codes.l0()[None]
    level = jnp.asarray(sae.forest.level_of)[codes.slot_indices()]
    own = level[None] == jnp.arange(levels)[:, None, None]
    return jnp.sum(own & (codes.values != 0), axis=-1).astype(jnp.float32)


def fidelity(
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    batches: Iterable[np.ndarray],
    mean: Float[np.ndarray, "embed"],
) -> tuple[dict[str, Any], Float[np.ndarray, "features"]]:
    """Metrics over all `batches` and the frequency of every feature.

    MSE is summed over embed, averaged over tokens. L1 is in the units of the SAE's own input, everything else in those
    of the language model. `density` counts the features that fired by the log10 of their frequency; the others are
    `dead`. `relative_reconstruction_bias` is ``E||x_hat||^2 / E[x . x_hat]`` (arXiv 2404.16014, eq. 10): 1 where no
    rescaling of x_hat would fit better, below 1 where x_hat is too short, 0 where it is always 0 and x is not. Sums are
    kept in float64.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        batches: activations in the language model's units, ``[rows, embed]`` each; of an SAE that writes something
            else than it reads with that beside them, ``[rows, embed + output]``: all metrics are about what it writes.
        mean: the mean of all held-out rows, of what is written.

    Returns:
        The metrics by name, None where one is not defined, and the fraction of tokens on which each feature fired.

    Raises:
        UserError: no rows at all.
    """
    totals: Totals = {}
    for batch in batches:
        if len(batch):
            add_sums(totals, _sums(sae, normalizer, jnp.asarray(batch), jnp.asarray(mean, jnp.float32)))
    return metrics_of(sae, totals, normalizer.written)


def add_sums(totals: Totals, sums: Mapping[str, Array]) -> None:
    """Adds the sums of a batch to those of all batches, in float64."""
    for name, value in sums.items():
        totals[name] = totals.get(name, np.float64(0)) + np.asarray(value, np.float64)


def metrics_of(
    sae: AbstractSAE, totals: Mapping[str, Sum], widths: tuple[int, ...] = ()
) -> tuple[dict[str, Any], Float[np.ndarray, "features"]]:
    """What `fidelity` returns, from the `sums_of` all batches.

    Args:
        sae: the SAE.
        totals: those sums.
        widths: how wide each of several layers is that are written side by side, for the explained variance of each.

    Raises:
        UserError: no rows at all.
    """
    if not totals:
        raise UserError("an evaluation of 0 activations; write a store, or rows, of at least 1")
    rows = totals["rows"]
    total = totals["centred"] if totals["centred"] > ROUNDING * totals["squares"].sum() else np.float64(0)
    uncentred = totals["squares"].sum() / rows
    saebench_total = uncentred - np.mean(totals["squares"] / rows) ** 2
    frequency = np.asarray(totals["fired"] / rows)
    there = np.asarray(sae.occupied)
    metrics: dict[str, Any] = {
        "ev_r2": explained(totals["error"], total),
        "ev_saebench": explained(totals["error"] / rows, saebench_total),
        "ev_legacy": explained(totals["ratio"], totals["varying"]),
        "mse": float(totals["error"] / rows),
        "cosine": ratio(totals["cosine"], totals["nonzero"]),
        "shrinkage": ratio(totals["shrinkage"], totals["nonzero"]),
        "relative_reconstruction_bias": _bias(totals["squared_hat"], totals["along"], totals["nonzero"]),
        "l0": float(totals["l0"] / rows),
        "l1": float(totals["l1"] / rows),
        "dead": _share(frequency[there] == 0),
        "below_1e-5": _share(frequency[there] < 1e-5),
        "above_1e-1": _share(frequency[there] > 0.1),
        "density": density(frequency),
        "rows": int(rows),
        "parameters": parameters(sae),
        "encoder_macs": float(totals["macs"] / rows),
        "encoder_macs_without_tables": float(totals["macs_without_tables"] / rows),
    }
    if len(widths) > 1:
        ends = np.cumsum(widths)[:-1]
        parts = (np.split(totals[key], ends) for key in ("error_by_number", "centred_by_number"))
        metrics["ev_r2_by_layer"] = [explained(error.sum(), whole.sum()) for error, whole in zip(*parts, strict=True)]
    if sae.tree is not None:
        metrics |= _by_level(sae.tree, totals, total, frequency == 0, there)
    return metrics, frequency


def _by_level(
    tree: Forest, totals: Mapping[str, Sum], total: Sum, dead: Bool[np.ndarray, "features"], there: np.ndarray
) -> dict[str, float | None]:
    """What is counted of roots and of all that is below them; of more than two levels, of each level too."""
    ev = [explained(error, total) for error in np.atleast_1d(totals["upper_error"])]
    l0 = (np.atleast_1d(totals["active"]) / totals["rows"]).tolist()
    by_level = [_share(dead[b.start : b.end][there[b.start : b.end]]) for b in tree.blocks]
    metrics = {
        "parents_only_ev_r2": ev[0],
        "l0_parents": l0[0],
        "l0_atoms": sum(l0[1:]),
        "dead_experts": by_level[0],
        "dead_atoms": _share(dead[tree.roots :][there[tree.roots :]]),
    }
    if len(tree.levels) > 2:
        metrics |= {f"to_level_{level}_ev_r2": value for level, value in enumerate(ev) if level}
        for level in range(1, len(tree.levels)):
            metrics |= {f"l0_level_{level}": l0[level], f"dead_level_{level}": by_level[level]}
    return metrics


def _share(marked: Bool[np.ndarray, " n"]) -> float | None:
    """The share that is marked; None of nothing."""
    return float(np.mean(marked)) if len(marked) else None


@eqx.filter_jit
def _errors(sae: AbstractSAE, normalizer: AbstractNormalizer, x: Array) -> Array:
    x, y = normalizer.split(x)
    return jnp.sum(((x if y is None else y) - reconstruct(sae, normalizer, x).x_hat) ** 2, axis=-1)


def explained_by_unit(
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    batches: Iterable[np.ndarray],
    units: Shaped[np.ndarray, " rows"],
    mean: Float[np.ndarray, "embed"],
) -> dict[str, float]:
    """The part of each unit in the explained variance `ev_r2`, scaled so that their mean is the whole.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        batches: activations in the language model's units, ``[rows, embed]`` each.
        units: what each row of all batches belongs to, such as its sequence.
        mean: that of the explained variance, ``[embed]``.

    Returns:
        ``1 - units * error / total`` by name of the unit, with the summed squared error of its rows and the total
        squared distance of all rows from `mean`; nothing where no row differs from the mean.
    """
    errors, total = [], 0.0
    for x in batches:
        errors.append(np.asarray(_errors(sae, normalizer, jnp.asarray(x)), np.float64))
        total += float(np.sum((x.astype(np.float64) - mean) ** 2))
    names, place = np.unique(units, return_inverse=True)
    sums = np.bincount(place.reshape(-1), weights=np.concatenate(errors))
    return {str(n): float(1 - len(names) * e / total) for n, e in zip(names, sums, strict=True)} if total else {}


def _bias(squared: SupportsFloat, along: SupportsFloat, nonzero: SupportsFloat) -> float | None:
    """``E||x_hat||^2 / E[x . x_hat]``; of a reconstruction that is always 0 its limit, 0."""
    return 0.0 if float(nonzero) and not float(squared) else ratio(squared, along)


def ratio(part: SupportsFloat, whole: SupportsFloat) -> float | None:
    """``part / whole``; None where the whole is 0, because the ratio is not defined there."""
    return float(part) / float(whole) if float(whole) else None


def explained(error: SupportsFloat, total: SupportsFloat) -> float | None:
    """``1 - error / total``; None where nothing varies."""
    return 1 - float(error) / float(total) if float(total) else None


def parameters(sae: AbstractSAE) -> int:
    """The number of trained parameters; an empty slot of a forest, a row of zeros, has none.

    Args:
        sae: any SAE, or its shapes alone, with all slots in use.
    """
    empty = 0 if _abstract(sae) else sae.features - int(np.sum(np.asarray(sae.occupied)))
    arrays = (a for a in jax.tree.leaves(sae) if isinstance(a, jax.Array | np.ndarray | jax.ShapeDtypeStruct))
    return sum(a.size for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)) - empty * sae.embed - sae.masked


def _abstract(sae: AbstractSAE) -> bool:
    return any(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(sae))
