"""Cross-entropy and KL of the language model with its residual stream replaced by a reconstruction.

``ce_recovered = (CE_zero - CE_sae) / (CE_zero - CE_model)``: 1 for a perfect SAE, 0 for replacing the stream by zeros.
A share whose denominator is 0 is None. Positions of special tokens (`jhsae.data.special_ids`)
keep their own residual: no SAE is trained on them.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from jhsae.data.normalize import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.evals.fidelity import ratio
from jhsae.lm import AbstractLM, cross_entropy
from jhsae.sae import AbstractSAE
from jhsae.sae.apply import reconstruct

Replace = Callable[[Float[Array, "rows embed"]], Float[Array, "rows embed"]]


class Spliced(eqx.Module):
    """A function from activations to their reconstructions, [rows, embed], in the units of the model.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
    """

    sae: AbstractSAE
    normalizer: AbstractNormalizer

    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        return reconstruct(self.sae, self.normalizer, x).x_hat


@eqx.filter_jit
def _clean(model: AbstractLM, layer: int, ids: Int[Array, "batch seq"]) -> tuple[Array, Array]:
    """The residual stream at `layer` and the log-probabilities of the unmodified model."""
    x = model.residual(ids, layer)
    return x, jax.nn.log_softmax(model.logits_from(x, layer))


def replaced(
    replace: Replace, x: Float[Array, "batch seq embed"], keep: Bool[Array, "batch seq"]
) -> Float[Array, "batch seq embed"]:
    """The residual stream after `replace`, where `keep` is False."""
    x_hat = replace(x.reshape(-1, x.shape[-1])).reshape(x.shape)
    return jnp.where(keep[..., None], x, x_hat.astype(x.dtype))


@eqx.filter_jit
def _losses(
    model: AbstractLM,
    layer: int,
    replace: Replace,
    x: Float[Array, "batch seq embed"],
    clean: Float[Array, "batch seq vocab"],
    ids: Int[Array, "batch seq"],
    keep: Bool[Array, "batch seq"],
) -> tuple[Array, Array]:
    """Sums over tokens of the cross-entropy, and of the KL divergence from `clean`, with the stream replaced."""
    return sums_against(model.logits_from(replaced(replace, x, keep), layer), clean, ids)


def sums_against(
    logits: Float[Array, "batch seq vocab"], clean: Float[Array, "batch seq vocab"], ids: Int[Array, "batch seq"]
) -> tuple[Array, Array]:
    """Sums over predicted tokens of the cross-entropy of `logits`, and of the KL divergence from log-probabilities."""
    divergence = jnp.sum(jnp.exp(clean) * (clean - jax.nn.log_softmax(logits)), axis=-1)
    return jnp.sum(cross_entropy(logits, ids)), jnp.sum(divergence[:, :-1])


def check_tokens(tokens: Int[np.ndarray, "sequences context"]) -> None:
    """Raises `UserError` for sequences that predict no token."""
    if tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise UserError(
            f"sequences of shape {tokens.shape} predict no token; write at least one sequence of two tokens"
        )


def splice(
    model: AbstractLM,
    layer: int,
    replacements: dict[str, Replace],
    tokens: Int[np.ndarray, "sequences context"],
    special: list[int],
    batch: int = 16,
) -> dict[str, dict[str, float]]:
    """Cross-entropy and KL of each replacement of the residual stream, of the model itself, and of zeros.

    Args:
        model: the language model.
        layer: the number of blocks before the replaced residual stream.
        replacements: functions from residual vectors ``[rows, embed]`` to what replaces them, by name; `Spliced` makes
            one of an SAE.
        tokens: ``[sequences, context]``.
        special: the ids whose positions keep their residual (`jhsae.data.special_ids`).
        batch: sequences per forward pass.

    Returns:
        For each name ``ce`` and ``kl``, in nats per predicted token.

    Raises:
        UserError: no token to predict.
    """
    check_tokens(tokens)
    everything = {"model": lambda x: x, "zero": jnp.zeros_like, **replacements}
    sums = {name: np.zeros(2) for name in everything}
    count = 0
    for start in tqdm(range(0, len(tokens), batch), desc="splice", unit="batch", dynamic_ncols=True, disable=None):
        ids = jnp.asarray(tokens[start : start + batch], jnp.int32)
        keep = jnp.isin(ids, jnp.asarray(special, jnp.int32))
        x, clean = _clean(model, layer, ids)
        for name, replace in everything.items():
            ce, kl = _losses(model, layer, replace, x, clean, ids, keep)
            sums[name] += [float(ce), float(kl)]
        count += ids.shape[0] * (ids.shape[1] - 1)
    return {name: {"ce": s[0] / count, "kl": s[1] / count} for name, s in sums.items()}


def recovered(results: dict[str, dict[str, float]], name: str) -> dict[str, Any]:
    """The scores of one replacement, in SAEBench's definitions.

    Args:
        results: those of `splice`.
        name: of the replacement.

    Returns:
        ``ce``, ``ce_model``, ``ce_zero`` and ``kl`` in nats per predicted token; ``ce_recovered`` and ``kl_recovered``,
        1 for a perfect reconstruction and 0 for zeros, None where zeros lose nothing either.
    """
    model, zero, ours = results["model"], results["zero"], results[name]
    return {
        "ce": ours["ce"],
        "ce_model": model["ce"],
        "ce_zero": zero["ce"],
        "ce_recovered": ratio(zero["ce"] - ours["ce"], zero["ce"] - model["ce"]),
        "kl": ours["kl"],
        "kl_recovered": ratio(zero["kl"] - ours["kl"], zero["kl"]),
    }
