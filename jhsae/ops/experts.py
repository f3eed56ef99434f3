"""The work inside the selected experts, and the sparse decoder of parents and flat SAEs.

For token b and selected expert e = indices[b, j] (``codes.parents.indices``), with c the children of that parent:
``pre[b, j, a] = atom_enc[e, a] . (down[e] x_b)`` and ``x_hat[b] = sum_j (sum_i c[b,j,i] atom_dec[e, a_i]) up[e]``.

Five kernels compute the same numbers, gradients included:
- ``tiles``: pairs of token and expert sorted by expert (`expert_major`), exact under any imbalance. Work grows with k,
  nothing of size batch x k x embed exists. Rows of flat decoders are gathered token by token (`rows`).
- ``tpu``: the same with kernels for TPU (`jhsae.ops.pallas.experts_tpu`), which move far fewer bytes; no TPU has run
  them. Rows of flat decoders are gathered as by ``tiles``.
- ``gpu``: the same for NVIDIA GPUs (`jhsae.ops.pallas.experts_gpu`), which write no row of a pair; no GPU has run them.
- ``dense``: matrix products with all experts; work grows with their number. For few experts.
- ``gather``: each token gathers the rows of its experts: the plain reference. `chunk` bounds how many tokens are
  gathered at once (batch x k x sub x embed is 38 GB at the headline shape); chunks are recomputed in the backward.
``auto`` takes dense where a token selects a large part of the experts, else tiles.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.codes import Codes, TreeCodes
from jhsae.ops import expert_major
from jhsae.ops.chunks import map_chunks
from jhsae.ops.parameters import Decoder, ExpertEncoders
from jhsae.ops.rows import gather_rows

Kernel = Literal["auto", "tiles", "gather", "dense", "tpu", "gpu"]
DENSE_BELOW = 8  # experts per selected expert; a guess: where products with all of them begin to win was not measured


@jax.named_scope("encode")
def encode_atoms(
    x: Float[Array, "batch embed"],
    indices: Int[Array, "batch k"],
    encoders: ExpertEncoders,
    kernel: Kernel = "auto",
    chunk: int | None = None,
) -> Float[Array, "batch k atoms"]:
    """Pre-activations of every atom of the selected experts.

    Args:
        x: the input of the experts, [batch, embed].
        indices: the selected experts of each token, [batch, k].
        encoders: the encoders inside all experts.
        kernel: how it is computed; see the module.
        chunk: how many tokens the kernel "gather" works on at once; None for all.

    Returns:
        ``atom_enc[e] down[e] x_b``, [batch, k, atoms].
    """
    down, atom_enc = encoders.down, encoders.atom_enc

    def gathered(x: Array, indices: Array) -> Array:
        return jnp.einsum("bks,bkas->bka", jnp.einsum("bd,bksd->bks", x, down[indices]), atom_enc[indices])

    match kernel_for(kernel, indices.shape[1], down.shape[0]):
        case "tiles" | "tpu" | "gpu" as chosen:
            return expert_major.passes(chosen).encode_atoms(x, indices, encoders)
        case "gather":
            return map_chunks(jax.checkpoint(gathered), chunk or x.shape[0], x, indices)
    hidden = jnp.einsum("bd,esd->bes", x, down)
    selected = jnp.take_along_axis(hidden, indices[..., None], axis=1)
    return jnp.einsum("bks,bkas->bka", selected, atom_enc[indices])


@jax.named_scope("decode")
def decode_atoms(
    codes: TreeCodes, decoder: Decoder, kernel: Kernel = "auto", chunk: int | None = None
) -> Float[Array, "batch embed"]:
    """What the selected atoms add to the reconstruction.

    Args:
        codes: of a batch; only the indices of the parents are read.
        decoder: the decoder of the SAE.
        kernel: how it is computed; see the module.
        chunk: how many tokens the kernel "gather" works on at once; None for all.

    Returns:
        ``sum_j (sum_i children[b, j, i] atom_dec[e_j, a_ji]) up[e_j]``, [batch, embed].
    """
    children, indices, up, atom_dec = codes.children, codes.parents.slot_indices(), decoder.up, decoder.atom_dec

    def inside(values: Array, atoms: Array, indices: Array) -> Array:
        return jnp.einsum("bkc,bkcs->bks", values, atom_dec[indices[..., None], atoms])

    def gathered(values: Array, atoms: Array, indices: Array) -> Array:
        return jnp.einsum("bks,bksd->bd", inside(values, atoms, indices), up[indices])

    chosen = kernel_for(kernel, indices.shape[1], up.shape[0])
    values, atoms = children.values, children.slot_indices()
    match chosen:
        case "tiles" | "tpu" | "gpu":
            return expert_major.passes(chosen).decode_atoms(codes, decoder)
        case "gather":
            return map_chunks(jax.checkpoint(gathered), chunk or values.shape[0], values, atoms, indices)
    return jnp.einsum("bes,esd->bd", _scatter(inside(values, atoms, indices), indices, up.shape[0]), up)


@jax.named_scope("decode")
def decode_rows(
    codes: Codes, rows: Float[Array, "features embed"], kernel: Kernel = "auto", chunk: int | None = None
) -> Float[Array, "batch embed"]:
    """``sum_j values[b, j] rows[indices[b, j]]``; of dense codes, ``values @ rows``.

    Args:
        codes: of a batch, over as many features as there are rows.
        rows: the decoder rows, [features, embed].
        kernel: how sparse codes are decoded; see the module.
        chunk: how many tokens the kernel "gather" works on at once; None for all.

    Returns:
        What the features add to the reconstruction, [batch, embed].
    """
    if codes.indices is None:
        return codes.values @ rows

    def gathered(values: Array, indices: Array) -> Array:
        return jnp.einsum("bk,bkd->bd", values, rows[indices])

    values, indices = codes.values, codes.indices
    match kernel_for(kernel, indices.shape[1], rows.shape[0]):
        case "tiles" | "tpu" | "gpu":
            return gather_rows(values, indices, rows)
        case "gather":
            return map_chunks(jax.checkpoint(gathered), chunk or values.shape[0], values, indices)
    return _scatter(values, indices, rows.shape[0]) @ rows


@jax.named_scope("decode")
def decode_tree(
    codes: TreeCodes, decoder: Decoder, kernel: Kernel = "auto", chunk: int | None = None
) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """What the parents and what the atoms add: (`decode_rows`, `decode_atoms`).

    The kernels ``tiles``, ``tpu`` and ``gpu`` compute their gradients together.

    Args:
        codes: of a batch.
        decoder: the decoder of the SAE.
        kernel: how it is computed; see the module.
        chunk: how many tokens the kernel "gather" works on at once; None for all.

    Returns:
        Two arrays [batch, embed], which add up to the reconstruction without the bias.
    """
    indices, experts = codes.parents.indices, decoder.up.shape[0]
    match None if indices is None else kernel_for(kernel, indices.shape[1], experts):
        case "tiles" | "tpu" | "gpu" as chosen:
            return expert_major.passes(chosen).decode_tree(codes, decoder)
    from_atoms = decode_atoms(codes, decoder, kernel, chunk)
    return decode_rows(codes.parents, decoder.rows, kernel, chunk), from_atoms


def kernel_for(kernel: Kernel, k: int, features: int) -> Kernel:
    """The kernel that `kernel` means for k selected of so many features.

    Args:
        kernel: what was asked for.
        k: selected experts or features of a token.
        features: how many there are.
    """
    if kernel != "auto":
        return kernel
    return "dense" if features < DENSE_BELOW * k else "tiles"


def _scatter(
    values: Float[Array, "batch k *rest"], indices: Int[Array, "batch k"], size: int
) -> Float[Array, "batch size *rest"]:
    """The selected values at their places among zeros; slots that share an index add up."""
    tokens = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], size, *values.shape[2:]), values.dtype).at[tokens, indices].add(values)
