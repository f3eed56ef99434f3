"""Cross-entropy and KL of the language model with what an SAE writes in place of one module's output, or of several.

As `jhsae.evals.splice`, at any hooks. Where every hook that is read is passed before what depends on it is written, an
SAE reads the pass that it changes: a transcoder stands in for its MLP, a cross-layer transcoder for all of them, and
layer l of it sees what the replaced layers before l have left. Otherwise (a crosscoder, whose code needs layers that
come later) it reads an unchanged pass. Zeros in place of the outputs are the zero of the share that is recovered.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from jhsae.data import Hook
from jhsae.data.hook import HOOKS
from jhsae.evals.splice import Replace, check_tokens, sums_against
from jhsae.lm import AbstractLM, Tap

Places = tuple[Hook, ...]


def splice_hooks(
    model: AbstractLM,
    places: tuple[Sequence[Hook], Sequence[Hook]],
    replace: Replace,
    tokens: Int[np.ndarray, "sequences context"],
    special: list[int],
    batch: int = 16,
    parts: int = 1,
) -> dict[str, dict[str, float]]:
    """Cross-entropy and KL of a replacement, of the model itself, and of zeros.

    Args:
        model: the language model.
        places: the hooks that are read, and those that are written.
        replace: a function from vectors of the first, side by side [rows, embed], to vectors of the second.
        tokens: ``[sequences, context]``.
        special: the ids whose positions keep their own activations (`jhsae.data.special_ids`).
        batch: sequences per forward pass.
        parts: the layers of a cross-layer transcoder, whose part l depends on the hooks up to l alone; 1 where all
            that is written depends on all that is read.

    Returns:
        For ``sae``, ``model`` and ``zero``: ``ce`` and ``kl``, in nats per predicted token.

    Raises:
        UserError: no token to predict, or a hook that the model does not have.
    """
    check_tokens(tokens)
    read, written = tuple(places[0]), tuple(places[1])
    ordered = in_order(read, written, parts)
    zero = lambda x: jnp.zeros((len(x), len(written) * model.embed))  # noqa: E731
    sums = {name: np.zeros(2) for name in ("model", "zero", "sae")}
    count = 0
    for start in tqdm(range(0, len(tokens), batch), desc="splice", unit="batch", dynamic_ncols=True, disable=None):
        ids = jnp.asarray(tokens[start : start + batch], jnp.int32)
        keep = jnp.isin(ids, jnp.asarray(special, jnp.int32))
        x, clean = _clean(model, read, ids)
        logits = {"model": clean}
        for name, function in (("zero", zero), ("sae", replace)):
            logits[name] = _replaced(model, (read, written), function, None if ordered else x, ids, keep)
        for name, found in logits.items():
            sums[name] += [float(part) for part in sums_against(found, jax.nn.log_softmax(clean), ids)]
        count += ids.shape[0] * (ids.shape[1] - 1)
    return {name: {"ce": s[0] / count, "kl": s[1] / count} for name, s in sums.items()}


def in_order(read: Places, written: Places, parts: int) -> bool:
    """Whether what a written hook depends on is passed before it, or at it."""
    at = [[hook.block * len(HOOKS) + HOOKS.index(hook.name) for hook in hooks] for hooks in (read, written)]
    if parts == len(read) == len(written):
        return all(max(at[0][: i + 1]) <= place for i, place in enumerate(at[1]))
    return max(at[0]) <= min(at[1])


@eqx.filter_jit
def _clean(model: AbstractLM, read: Places, ids: Int[Array, "batch seq"]) -> tuple[Array, Array]:
    """What is read of an unchanged pass, [hooks, batch, seq, embed], and its logits."""
    return model.hooked(ids, read), model(ids)


@eqx.filter_jit
def _replaced(
    model: AbstractLM,
    places: tuple[Places, Places],
    replace: Replace,
    clean: Float[Array, "hooks batch seq embed"] | None,
    ids: Int[Array, "batch seq"],
    keep: Bool[Array, "batch seq"],
) -> Float[Array, "batch seq vocab"]:
    """The logits with the written hooks replaced; `clean` is what is read, or None to read the same pass."""
    read, written = places
    seen: dict[Hook, Array] = {} if clean is None else dict(zip(read, clean, strict=True))

    def write(hook: Hook, value: Array) -> Array:
        x = jnp.stack([seen.get(one, jnp.zeros_like(value)) for one in read], axis=-2)  # 0 for what comes later
        y = replace(x.reshape(-1, len(read) * model.embed)).reshape(*value.shape[:-1], len(written), model.embed)
        return jnp.where(keep[..., None], value, y[..., written.index(hook), :].astype(value.dtype))

    def tap_of(block: int) -> Tap:
        def tap(name: str, value: Array) -> Array:
            hook = Hook(name, block)
            if clean is None and hook in read:
                seen[hook] = value
            return write(hook, value) if hook in written else value

        return tap

    return model.edited(ids, {hook.block: tap_of(hook.block) for hook in (*read, *written)})
