import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae import ops
from jhsae.codes import Codes
from jhsae.losses import ParentsOnly, SquaredError
from jhsae.sae import FlatSAE, Forward
from jhsae.sparsify import ReLU
from jhsae.usage import Context

RNG = np.random.default_rng(0)
X, X_HAT, COARSE = (RNG.normal(size=(5, 4)).astype(np.float32) for _ in range(3))


SAE = filled(lambda: FlatSAE(4, 1, ReLU(), key=jax.random.key(0)))


def forward(x=X, x_hat=X_HAT, coarse=COARSE):
    codes = jnp.zeros((5, 1))
    coarse = None if coarse is None else jnp.asarray(coarse)
    return Forward(
        jnp.asarray(x), jnp.asarray(x_hat), Codes(codes, None, 1), ops.Encoder.known(codes), Context(), coarse
    )


@pytest.mark.parametrize("term, x_hat", [(SquaredError, X_HAT), (ParentsOnly, COARSE)])
def test_the_error_is_summed_over_embed_and_averaged_over_tokens(term, x_hat):
    want = np.mean([np.sum((a - b) ** 2) for a, b in zip(X, x_hat, strict=True)])
    np.testing.assert_allclose(term()(SAE, forward()), want, rtol=1e-5)
    np.testing.assert_allclose(term("mean")(SAE, forward()), want / 4, rtol=1e-5)


def test_on_unit_rows_it_is_one_minus_the_uncentred_explained_variance():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    got = SquaredError()(SAE, forward(unit, 0.5 * unit))
    np.testing.assert_allclose(got, 0.25, rtol=1e-5)


def test_a_flat_forward_has_no_parents_only_error():
    with pytest.raises(ValueError, match="hierarchical SAE"):
        ParentsOnly()(SAE, forward(coarse=None))
