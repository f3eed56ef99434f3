"""Penalties of PolytopeSAE that cannot do what they are for, beside those of this package, which can."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jhsae import config, ops
from jhsae.codes import Codes
from jhsae.losses import BiOrthogonality, BiOrthogonalityRawSum, CausalOrthogonality, CrossOrthogonality
from jhsae.metric import Euclidean
from jhsae.sae import Forward, HierarchicalSAE
from jhsae.sparsify import TopK
from jhsae.training.config import Train
from jhsae.usage import Context

DECODERS = ("router_dec", "up", "atom_dec")


def new(experts=8, embed=16, sub=4, atoms=3):
    return HierarchicalSAE(embed, experts, sub, atoms, TopK(1), TopK(1), key=jax.random.key(0))


def nothing(embed=16):
    """A forward pass for terms that read weights alone."""
    x, one = jnp.zeros((1, embed)), jnp.zeros((1, 1))
    return Forward(x, x, Codes(one, None, 1), ops.Encoder.from_preactivations(one), Context())


def value(term, sae) -> float:
    return float(term(sae, nothing(sae.embed)))


def size(sae, frozen=()) -> dict[str, float]:
    """The norm of the gradient of causal orthogonality by parameter; none of what is frozen."""
    grads = eqx.filter_grad(lambda s: CausalOrthogonality(Euclidean())(s, nothing()))(sae)
    found = {name: getattr(grads, name) for name in (*DECODERS, "router_enc", "down", "atom_enc")}
    return {n: float(jnp.linalg.norm(g)) for n, g in found.items() if isinstance(g, Array) and n not in frozen}


@pytest.mark.parametrize("name", ["geometry.yaml", "quickstart/geometry.yaml"])
def test_causal_orthogonality_acts_where_the_directions_are_free(name):
    """The original has it on only while all that it touches is frozen, so its gradient is 0 throughout."""
    stages = config.load(Train, config.find(name)).stages
    assert all(value == 0 for value in size(new(), frozen=DECODERS).values())  # the original's schedule
    moving = [s for s in stages if not set(DECODERS) <= set(s.freeze)]
    assert moving and all(s.weights.get("causal_orthogonality", 1.0) != 0 for s in moving)
    for stage in moving:
        assert any(value > 1e-3 for value in size(new(), frozen=stage.freeze).values())


def test_the_raw_sum_grows_with_the_experts_and_has_a_floor_and_the_mean_has_neither():
    few, many = (value(BiOrthogonalityRawSum(), new(experts=n)) for n in (8, 64))
    assert many > 5 * few
    means = [value(BiOrthogonality(), new(experts=n, embed=64)) for n in (8, 64)]
    assert 0.5 < means[1] / means[0] < 2
    # more atoms than dimensions: no choice of directions brings the raw sum below atoms - sub for each expert
    crowded = new(experts=4, embed=64, sub=2, atoms=6)
    eye = jnp.tile(jnp.eye(2), (3, 1))[None].repeat(4, axis=0)
    best = eqx.tree_at(lambda s: (s.atom_enc, s.atom_dec), crowded, (eye, eye))
    assert value(BiOrthogonalityRawSum(), best) > 4 * (6 - 2)
    assert value(BiOrthogonality(), best) < 2


def test_cosines_are_of_rows_not_of_coordinates():
    """The original divides by the norm of each coordinate over the experts: orthonormal experts do not give 0."""
    rows = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0][:8], jnp.float32)
    sae = eqx.tree_at(lambda s: (s.router_enc, s.router_dec), new(), (rows, rows))
    dec = rows / jnp.linalg.norm(rows, axis=0)
    original = rows @ dec.T - jnp.diag(jnp.diag(rows @ dec.T))
    assert float(jnp.mean(original**2)) > 1e-3
    assert value(CrossOrthogonality(), sae) < 1e-10
