"""`BestAtoms`: one atom of each active expert, in the experts of a token where it is largest."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.sae import FlatSAE, HierarchicalSAE, Residual, ScaledByParent, Unscaled
from jhsae.sparsify import BestAtoms, TopK
from jhsae.usage import Context

BATCH, EXPERTS, ATOMS = 20, 5, 4


def picked(pre, keep):
    """The oracle: for each token the largest positive atom of each expert, then the `keep` largest of them."""
    out = np.zeros(pre.shape)
    for token, of_token in enumerate(np.asarray(pre, np.float64)):
        best = [(of_expert.max(), expert, of_expert.argmax()) for expert, of_expert in enumerate(of_token)]
        for value, expert, atom in sorted(best, reverse=True)[:keep]:
            out[token, expert, atom] = max(value, 0.0)
    return out


@pytest.mark.parametrize("keep", [1, 3, 5, 9])
def test_codes_and_gradients_are_those_of_the_oracle(keep):
    pre = jax.random.normal(jax.random.key(0), (BATCH, EXPERTS, ATOMS))
    want = picked(pre, keep)
    dense = jax.jit(lambda pre: BestAtoms(keep)(pre, Context()).dense())
    np.testing.assert_allclose(dense(pre), want, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda pre: jnp.sum(dense(pre)))(pre), want > 0)


def test_of_equal_atoms_no_more_are_kept():
    codes = BestAtoms(2)(jnp.ones((3, EXPERTS, ATOMS)), Context())
    np.testing.assert_array_equal(codes.dense().sum((1, 2)), 2)


@pytest.mark.parametrize("scale", [Unscaled(), ScaledByParent()])
@pytest.mark.parametrize("child_input", [None, Residual()])
def test_an_expert_that_is_not_active_takes_no_place(scale, child_input):
    """A token with two active experts of three slots keeps two atoms, whatever the third would have had."""
    parts = {"child_scale": scale} | ({} if child_input is None else {"child_input": child_input})
    sae = HierarchicalSAE(8, 6, 2, 4, TopK(3), BestAtoms(2), **parts, biases=("encoder",), key=jax.random.key(0))
    sae = eqx.tree_at(lambda s: (s.b_enc, s.b_atom), sae, (sae.b_enc - 1.0, sae.b_atom + 5.0))
    codes = eqx.filter_jit(sae.encode)(jax.random.normal(jax.random.key(1), (64, 8)))
    active = np.asarray(codes.parents.values > 0).sum(1)
    assert {1, 2, 3} <= set(active.tolist())
    np.testing.assert_array_equal(np.asarray(codes.children.values != 0).sum((1, 2)), np.minimum(active, 2))


def test_it_is_a_rule_for_atoms_alone():
    with pytest.raises(UserError, match=r"BestAtoms is a rule for the atoms of experts; write it as sae\.pick"):
        FlatSAE(8, 6, BestAtoms(2), key=jax.random.key(0))
    with pytest.raises(UserError, match="route: BestAtoms"):
        HierarchicalSAE(8, 6, 2, 4, BestAtoms(2), TopK(1), key=jax.random.key(0))
