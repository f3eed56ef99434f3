"""The two philosophies as one call each, for scripts."""

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
    """
    route = GumbelTopK(k, temperature=Linear(*temperature, steps))
    return HierarchicalSAE(
        embed, experts, sub, atoms, route, TopK(1), biases=("encoder", "decoder"), kernel=kernel, chunk=chunk, key=key
    )
