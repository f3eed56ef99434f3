import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.losses import Objective, ParentsOnly, SquaredError
from jhsae.sae import FlatSAE, HierarchicalSAE, TreeForward
from jhsae.sparsify import ReLU
from jhsae.usage import Context

RNG = np.random.default_rng(0)
X, X_HAT, PARENTS = (RNG.normal(size=(5, 4)).astype(np.float32) for _ in range(3))


FLAT = filled(lambda: FlatSAE(4, 1, ReLU(), key=jax.random.key(0)))
TREE = filled(lambda: HierarchicalSAE(4, 1, 2, 1, ReLU(), ReLU(), key=jax.random.key(0)))


def forward(x=X, x_hat=X_HAT, y=None):
    codes, pre = Codes(jnp.zeros((5, 1)), None, 1), jnp.zeros((5, 1))
    given = jnp.asarray(x), jnp.asarray(x_hat), TreeCodes(codes, Codes(pre[:, None], None, 1))
    encoder, y = ops.Encoder.from_preactivations(pre), None if y is None else jnp.asarray(y)
    known = {"x_hat_parents": jnp.asarray(PARENTS), "child_pre": pre[:, None], "l1": jnp.zeros(())}
    return TreeForward(*given, encoder, Context(), y, **known)


@pytest.mark.parametrize("term, x_hat", [(SquaredError, X_HAT), (ParentsOnly, PARENTS)])
def test_the_error_is_summed_over_embed_and_averaged_over_tokens(term, x_hat):
    want = np.mean([np.sum((a - b) ** 2) for a, b in zip(X, x_hat, strict=True)])
    np.testing.assert_allclose(term()(TREE, forward()), want, rtol=1e-5)
    np.testing.assert_allclose(term("mean")(TREE, forward()), want / 4, rtol=1e-5)


def test_on_unit_rows_it_is_one_minus_the_uncentred_explained_variance():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    got = SquaredError()(FLAT, forward(unit, 0.5 * unit))
    np.testing.assert_allclose(got, 0.25, rtol=1e-5)


@pytest.mark.parametrize("term, x_hat", [(SquaredError, X_HAT), (ParentsOnly, PARENTS)])
def test_the_error_is_that_towards_the_target(term, x_hat):
    """Which is not the input, where the SAE gives another."""
    target = X[::-1].copy()
    want = np.mean(np.sum((target - x_hat) ** 2, axis=-1))
    np.testing.assert_allclose(term()(TREE, forward(y=target)), want, rtol=1e-5)


def test_parents_only_is_refused_for_a_flat_sae():
    sentence = r"the term 'parents', ParentsOnly, needs a HierarchicalSAE, got a FlatSAE; drop the term"
    with pytest.raises(UserError, match=sentence):
        Objective({"parents": ParentsOnly()})(FLAT, forward(), 0)
