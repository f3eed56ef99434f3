"""The prefix loss: the error of each level's own reconstruction."""

import equinox as eqx
import jax
import numpy as np
import pytest
from reference.pursuit import pursuit, refitted

from jhsae.errors import UserError
from jhsae.losses import Objective, Prefix, SquaredError
from jhsae.sae import FlatSAE, PursuitSAE
from jhsae.sparsify import Threshold, TopK
from jhsae.usage import Context


def test_it_is_the_error_of_the_levels_above_refitted():
    sae = PursuitSAE(10, [5, 2, 2], Threshold(0.3, 5), sweeps=200, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (16, 10))
    value = eqx.filter_jit(lambda sae, x: Prefix()(sae, sae.forward(x, Context())))(sae, x)
    x, rows, forest = np.asarray(x, float), np.asarray(sae.rows, float), sae.forest
    codes, _, _ = pursuit(x, rows, forest.parents, 0.3, 5, sweeps=200)
    above = [refitted(x, rows, np.where(forest.level_of <= level, codes, 0)) for level in range(2)]
    want = sum(np.mean(np.sum((x - z @ rows) ** 2, axis=1)) for z in above)
    assert float(value) == pytest.approx(want, rel=1e-4)


def test_it_is_for_a_pursuit_of_several_levels():
    x = jax.random.normal(jax.random.key(1), (4, 10))
    flat = PursuitSAE(10, [8], Threshold(0.3, 3), key=jax.random.key(0))
    with pytest.raises(UserError, match="the SAE has one level"):
        Prefix()(flat, flat.forward(x, Context()))
    with pytest.raises(UserError, match=r"needs a PursuitSAE, got a FlatSAE; write jhsae.losses.ParentsOnly"):
        Objective({"r": SquaredError(), "p": Prefix()}).check(FlatSAE(10, 8, TopK(2), key=jax.random.key(0)))
