"""The two philosophies as one call each, for scripts.

One skeleton is trained with small parts in its slots. A slot is one key of the YAML of ``jhsae train``, and swapping it
is one ablation (``configs/ablations/``). What ``configs/scale.yaml`` and ``configs/geometry.yaml`` put into the slots:

| slot | scale | geometry |
|---|---|---|
| `sae.experts` / `sub` / `atoms` | 16384 / 4 / 16 | 256 / 96 / 32 |
| `sae.route` | `OffsetTopK(k=32)`, hard | `GumbelTopK(k=8)`, temperature 1.5 to 0.7 |
| `sae.pick` | `TopK(1)` | `TopK(1)` |
| `sae.child_input`, `child_scale` | `Token`, `Unscaled` | the same (others: `Residual`, `ScaledByParent`) |
| `sae.tie` | equal at the start | untied |
| `sae.biases` | none | encoder, decoder |
| `init` | `UnitDecoder` | `FromTeacher` |
| `data.normalize` | `UnitNorm` | `CenterScale` |
| `metric`, `constraint` | Euclidean, `ProjectAndRenormalize` | causal (residual side), `Renormalize` |
| `objective` | squared error, parents only, L1, cross-orthogonality | + bi- and causal orthogonality |
| `stages` | one; warmup, cosine | freeze the decoders, then adapt; constant |

``configs/reference/`` holds the published forms of both, whose mistakes are parts of their own: for example
`jhsae.losses.CrossOrthogonalityRowDiagonal` (the diagonal subtracted as a row) and
`jhsae.sparsify.BinaryGumbelTopK` (no magnitude reaches the decoder).
"""

from jaxtyping import Array, Key

from jhsae import ops
from jhsae.ranges import Count, NonNegative, ranged
from jhsae.sae.hierarchical import HierarchicalSAE
from jhsae.schedule import Linear
from jhsae.sparsify import GumbelTopK, OffsetTopK, TopK


@ranged
def mixture_of_experts_v2(
    embed: Count,
    experts: Count = 16384,
    sub: Count = 4,
    atoms: Count = 16,
    k: Count = 32,
    *,
    key: Key[Array, ""],
    kernel: ops.Kernel = "auto",
    chunk: Count | None = None,
) -> HierarchicalSAE:
    """Scale: many small experts, hard top-k over a threshold of 1/sqrt(embed), one atom per active expert.

    Made for inputs of unit norm (arXiv 2506.01197). ``route.topk`` "scan" is the original's top-k: the same numbers.

    Args:
        embed: the size of the vectors.
        experts: the number of parents.
        sub: the dimensions of an expert's subspace, at most `embed`.
        atoms: the atoms of each expert.
        k: the experts that are active per token.
        key: for the starting values.
        kernel: how the experts are computed (`ops`).
        chunk: how many tokens are routed at once; None for a size that suits the machine.

    Raises:
        UserError: a `sub` above `embed`, or a `k` above `experts`.
    """
    route = OffsetTopK(k, offset=embed**-0.5)
    return HierarchicalSAE(embed, experts, sub, atoms, route, TopK(1), kernel=kernel, chunk=chunk, key=key)


@ranged
def teacher_initialized(
    embed: Count,
    experts: Count = 256,
    sub: Count = 96,
    atoms: Count = 32,
    k: Count = 8,
    *,
    key: Key[Array, ""],
    temperature: tuple[NonNegative, NonNegative] = (1.5, 0.7),
    steps: Count = 10_000,
    kernel: ops.Kernel = "auto",
    chunk: Count | None = None,
) -> HierarchicalSAE:
    """Geometry: few wide experts, Gumbel top-k routing annealed over `steps`, biases, one atom per expert.

    Follow it with ``jhsae.init.FromTeacher(path)`` to copy a concept teacher's directions into it.

    Args:
        embed: the size of the vectors.
        experts: the number of parents.
        sub: the dimensions of an expert's subspace, at most `embed`.
        atoms: the atoms of each expert.
        k: the experts that are active per token.
        key: for the starting values.
        temperature: of the noise and the softmax of the routing: at step 0, and from step `steps` on.
        steps: the training steps over which the temperature falls.
        kernel: how the experts are computed (`ops`).
        chunk: how many tokens are routed at once; None for a size that suits the machine.

    Raises:
        UserError: a `sub` above `embed`, or a `k` above `experts`.
    """
    route = GumbelTopK(k, temperature=Linear(*temperature, steps))
    return HierarchicalSAE(
        embed, experts, sub, atoms, route, TopK(1), biases=("encoder", "decoder"), kernel=kernel, chunk=chunk, key=key
    )
