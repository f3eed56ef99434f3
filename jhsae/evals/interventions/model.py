"""A language model with an SAE at one layer: codes read, the stream replaced by their reconstruction, codes edited.

At every token that is neither special nor padding ``x' = base + sum_i (c'_i - c_i) row_i``. With the error term kept
the base is the residual stream x itself, which without an edit stays as it is to the bit; with it dropped the base is
the reconstruction. Rows are in the units of the language model: the input normaliser is undone at each token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jhsae.codes import Codes, TreeCodes
from jhsae.data import AbstractNormalizer, Identity, PerToken
from jhsae.errors import UserError
from jhsae.evals.interventions.edits import AbstractEdit, Site
from jhsae.evals.interventions.prompts import Positions, Prompts, tokenised
from jhsae.features.names import rows_named
from jhsae.features.origin import check_model
from jhsae.lm import AbstractLM, LanguageModel
from jhsae.ranges import ranged
from jhsae.sae import AbstractSAE
from jhsae.sae.apply import reconstruct

Edits = Mapping[str | int, AbstractEdit]
Loaded = tuple[AbstractSAE, AbstractNormalizer, dict[str, Any]]
ErrorTerm = Literal["kept", "dropped"]
Norm = Literal["free", "kept"]


class Read(eqx.Module):
    """What the SAE reads at its layer.

    Args:
        x: the residual stream, [prompts, time, embed].
        x_hat: its reconstruction, in the same units.
        codes: those of all positions, a row per position of every prompt; of special tokens and padding too.
        token: the statistics of the normaliser.
    """

    x: Float[Array, "prompts time embed"]
    x_hat: Float[Array, "prompts time embed"]
    codes: Codes | TreeCodes
    token: PerToken


class Run(eqx.Module):
    """One pass of the language model with the SAE in it.

    Args:
        prompts: the token ids.
        read: codes, stream and reconstruction before any edit.
        stream: the residual stream that the blocks after the layer saw, [prompts, time, embed].
        logits: [prompts, time, vocab].
    """

    prompts: Prompts
    read: Read
    stream: Float[Array, "prompts time embed"]
    logits: Float[Array, "prompts time vocab"]


class Rows(eqx.Module):
    """Rows of the dictionary that one edit changes.

    Args:
        rows: their numbers.
        parents: the rows above them, -1 for none.
        edit: what happens to their codes.
    """

    rows: Int[Array, "rows"]
    parents: Int[Array, "rows"]
    edit: AbstractEdit


@dataclass(frozen=True, eq=False)
class SplicedLM:
    """A language model with an SAE at one layer; made by `with_sae`.

    Args:
        model: the language model and its tokenizer.
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        layer: the number of blocks before the stream that it reads.
        error: whether what the SAE does not reconstruct stays in the stream.
    """

    model: LanguageModel
    sae: AbstractSAE
    normalizer: AbstractNormalizer
    layer: int
    error: ErrorTerm = "kept"

    def prompts(self, prompts: Prompts | str | Sequence[str]) -> Prompts:
        """Token ids of texts; `UserError` for an empty one, or one that is too long."""
        return prompts if isinstance(prompts, Prompts) else tokenised(prompts, self.model)

    def run(
        self,
        prompts: Prompts | str | Sequence[str],
        edits: Edits | None = None,
        *,
        positions: Positions = "all",
        norm: Norm = "free",
    ) -> Run:
        """Runs the model with the SAE in it.

        Args:
            prompts: texts, or their token ids.
            edits: edits by the name of a latent (`jhsae.features.names`), or the number of its row.
            positions: every token of a prompt is edited, or its last one. What the SAE reconstructs is all of them.
            norm: "kept" scales the edited stream to the norm that it had before.

        Returns:
            Codes, streams and logits.

        Raises:
            UserError: a prompt or a latent that is not there, or two edits of one latent.
        """
        found = self.prompts(prompts)
        read = self.read(found)
        stream = self.edited(found, read, self.rows(edits or {}), found.at(positions), norm)
        return Run(found, read, stream, logits_from(self.model.model, stream, self.layer))

    def read(self, prompts: Prompts) -> Read:
        """The stream at the layer and its codes."""
        return _read(self.model.model, self.sae, self.normalizer, self.layer, prompts.ids)

    def base(self, prompts: Prompts, read: Read) -> Float[Array, "prompts time embed"]:
        """The stream that edits are added to."""
        return read.x if self.error == "kept" else jnp.where(prompts.live[..., None], read.x_hat, read.x)

    def edited(
        self, prompts: Prompts, read: Read, edits: list[Rows], where: Bool[Array, "prompts time"], norm: Norm = "free"
    ) -> Float[Array, "prompts time embed"]:
        """The stream after the edits, at the positions of `where`."""
        base = self.base(prompts, read)
        return moved(base, self.delta(read, edits, where), norm) if edits else base

    def delta(
        self, read: Read, edits: list[Rows], where: Bool[Array, "prompts time"]
    ) -> Float[Array, "prompts time embed"]:
        """What the edits add to the stream, in its units; 0 outside of `where`."""
        parts = (_delta(self.sae, self.normalizer, read, one, where) for one in edits)
        return sum(parts, start=jnp.zeros_like(read.x))

    def rows(self, edits: Edits) -> list[Rows]:
        """The rows of each edit; `UserError` for a latent that is not there or is edited twice."""
        parents, seen, found = self.sae.latent_parents(), set[int](), []
        for name, edit in edits.items():
            own = np.array(rows_named(name, self.sae), np.int32)
            if twice := seen & set(own.tolist()):
                raise UserError(f"latent {name} is edited twice (row {min(twice)}); write one edit for each latent")
            if edit.within.needs_parent and (parents[own] < 0).any():
                kind = type(edit.within).__name__
                raise UserError(
                    f"latent {name} has no latent above it, which {kind} asks about; write an atom such as e0/a0, or "
                    "within=Everywhere"
                )
            seen |= set(own.tolist())
            found.append(Rows(jnp.asarray(own), jnp.asarray(parents[own], jnp.int32), edit))
        return found


@ranged
def with_sae(
    model: LanguageModel,
    sae: AbstractSAE | Loaded,
    layer: int | None = None,
    *,
    normalizer: AbstractNormalizer | None = None,
    error: ErrorTerm = "kept",
) -> SplicedLM:
    """Puts an SAE into a language model, to read its codes there, replace the stream and edit latents.

    Args:
        model: the language model, of `jhsae.lm.load`.
        sae: what `load_sae` returned, whose normaliser and origin are then used and checked; or an SAE alone.
        layer: the number of blocks before the stream that the SAE reads; by default that of the training.
        normalizer: the fitted input normaliser of an SAE that is given alone; by default none.
        error: "kept" leaves what the SAE does not reconstruct in the stream, "dropped" replaces the stream by the
            reconstruction.

    Returns:
        The model with the SAE in it.

    Raises:
        UserError: another model, layer or width than those of the training, or no layer.
    """
    about: dict[str, Any] = {"reads": {"model": None, "layer": None}}
    if isinstance(sae, tuple):
        if normalizer is not None:
            raise UserError("normalizer is given twice: load_sae returned one; leave normalizer out")
        sae, normalizer, about = sae
    known = about["reads"]["layer"]
    if layer is None and known is None:
        raise UserError("layer is not given, and the SAE does not say which it reads; write layer=...")
    at = known if layer is None else layer
    check_model(sae, about, model, at)
    return SplicedLM(model, sae, normalizer or Identity(), at, error)


def moved(
    base: Float[Array, "prompts time embed"], delta: Float[Array, "prompts time embed"], norm: Norm
) -> Float[Array, "prompts time embed"]:
    """``base + delta``; with `norm` kept, at the norm of the base wherever the delta is not 0."""
    if norm == "free":
        return base + delta
    before, after = (jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (base, base + delta))
    changed = jnp.any(delta != 0, axis=-1, keepdims=True)
    return jnp.where(changed, (base + delta) * (before / jnp.where(after > 0, after, 1.0)), base)


@eqx.filter_jit
def logits_from(
    model: AbstractLM, stream: Float[Array, "prompts time embed"], layer: int
) -> Float[Array, "prompts time vocab"]:
    """The logits that follow from a stream."""
    return model.logits_from(stream, layer)


@eqx.filter_jit
def logits_at(
    model: AbstractLM, stream: Float[Array, "prompts time embed"], layer: int, positions: Int[Array, "prompts"]
) -> Float[Array, "prompts vocab"]:
    """The logits that follow from a stream, at one position of each prompt."""
    return model.logits_at(stream, layer, positions)


def in_lm_units(
    normalizer: AbstractNormalizer, rows: Float[Array, "tokens embed"], token: PerToken
) -> Float[Array, "tokens embed"]:
    """Differences of normalised vectors, in the units of the language model: the normaliser without its shift."""
    return jax.jvp(lambda inside: normalizer.undo(inside, token), (jnp.zeros_like(rows),), (rows,))[1]


def values_of(codes: Codes, rows: Int[Array, "rows"]) -> Float[Array, "tokens rows"]:
    """The codes of some features; 0 for a row of -1."""
    there = rows >= 0
    if codes.indices is None:
        return jnp.where(there, codes.values[:, jnp.maximum(rows, 0)], 0.0)
    same = codes.indices[:, :, None] == rows
    return jnp.sum(jnp.where(same & there, codes.values[:, :, None], 0.0), axis=1)


@eqx.filter_jit
def _read(
    model: AbstractLM, sae: AbstractSAE, normalizer: AbstractNormalizer, layer: int, ids: Int[Array, "prompts time"]
) -> Read:
    x = model.residual(ids, layer)
    rows = x.reshape(-1, x.shape[-1])
    found = reconstruct(sae, normalizer, rows)
    return Read(x, found.x_hat.reshape(x.shape), found.forward.codes, normalizer(rows)[1])


@eqx.filter_jit
def _delta(
    sae: AbstractSAE, normalizer: AbstractNormalizer, read: Read, edit: Rows, where: Bool[Array, "prompts time"]
) -> Float[Array, "prompts time embed"]:
    embed = read.x.shape[-1]
    codes, x = read.codes.flat(), read.x.reshape(-1, embed)
    rows = sae.dictionary()[edit.rows]

    def norms(row: Float[Array, "embed"]) -> Float[Array, "tokens"]:
        return jnp.linalg.norm(in_lm_units(normalizer, jnp.broadcast_to(row, x.shape), read.token), axis=1)

    change = edit.edit(
        Site(
            codes=values_of(codes, edit.rows),
            parents=values_of(codes, edit.parents),
            row_norms=jax.vmap(norms, out_axes=1)(rows),
            norms=jnp.linalg.norm(x, axis=1, keepdims=True),
        )
    )
    delta = in_lm_units(normalizer, change @ rows, read.token).reshape(read.x.shape)
    return jnp.where(where[..., None], delta, 0.0)
