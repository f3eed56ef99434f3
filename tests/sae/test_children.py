import jax.numpy as jnp
import numpy as np

from jhsae.sae import Residual, ScaledByParent, Token, Unscaled

X, RESIDUAL = jnp.array([[1.0, 2.0]]), jnp.array([[0.75, 3.0]])
CHILDREN, PARENTS = jnp.array([[[3.0, -4.0], [5.0, 6.0]]]), jnp.array([[2.0, 0.0]])


def test_token_reads_the_token():
    np.testing.assert_array_equal(Token()(X, RESIDUAL), X)


def test_residual_reads_what_the_parents_left_over():
    np.testing.assert_array_equal(Residual()(X, RESIDUAL), RESIDUAL)


def test_unscaled_children_stand_alone_but_need_an_active_parent():
    np.testing.assert_array_equal(Unscaled()(CHILDREN, PARENTS), [[[3.0, -4.0], [0.0, 0.0]]])


def test_scaled_children_are_multiplied_by_their_parent():
    np.testing.assert_array_equal(ScaledByParent()(CHILDREN, PARENTS), [[[6.0, -8.0], [0.0, 0.0]]])


def test_scaling_is_undone_where_a_parent_is_active():
    for part in (Unscaled(), ScaledByParent()):
        np.testing.assert_array_equal(part.undo(part(CHILDREN, PARENTS), PARENTS), [[[3.0, -4.0], [0.0, 0.0]]])
