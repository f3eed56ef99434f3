import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae import ops
from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.losses import Objective
from jhsae.losses.base import AbstractTerm
from jhsae.sae import FlatSAE, Forward
from jhsae.schedule import Constant, Linear
from jhsae.sparsify import ReLU
from jhsae.usage import Context

SAE = filled(lambda: FlatSAE(1, 1, ReLU(), key=jax.random.key(0)))
ONE = jnp.ones((1, 1))
FORWARD = Forward(ONE, ONE, Codes(ONE, None, 1), ops.Encoder.from_preactivations(ONE), Context())


class Value(AbstractTerm):
    value: float

    def __call__(self, sae, forward):
        return jnp.asarray(self.value)


class Forbidden(AbstractTerm):
    def __call__(self, sae, forward):
        raise AssertionError("a term of weight 0 was computed")


def test_the_loss_is_the_weighted_sum_and_terms_are_reported_unweighted():
    objective = Objective({"a": Value(2.0), "b": Value(3.0), "c": Value(5.0)}, {"b": 0.5, "c": Linear(0.0, 2.0, 4)})
    for step in (0, 1, 4):
        total, values = objective(SAE, FORWARD, step)
        np.testing.assert_allclose(total, 2.0 + 1.5 + 5.0 * 0.5 * step)
        assert {name: float(v) for name, v in values.items()} == {"a": 2.0, "b": 3.0, "c": 5.0}


@pytest.mark.parametrize("zero", [0.0, Constant(0.0)])
def test_a_weight_of_zero_leaves_the_term_out(zero):
    total, values = Objective({"a": Value(2.0), "b": Forbidden()}, {"b": zero})(SAE, FORWARD, 0)
    assert float(total) == 2.0 and set(values) == {"a"}


def test_a_schedule_that_starts_at_zero_keeps_the_term():
    _, values = Objective({"a": Value(2.0)}, {"a": Linear(0.0, 1.0, 5)})(SAE, FORWARD, 0)
    assert set(values) == {"a"}


def test_no_live_term_is_a_loss_of_zero():
    total, values = Objective({"a": Forbidden()}, {"a": 0.0})(SAE, FORWARD, 0)
    assert float(total) == 0.0 and values == {}


def test_a_weight_without_a_term_is_an_error_with_a_hint():
    with pytest.raises(UserError, match=r"'reconstuction'.*did you mean 'reconstruction'"):
        Objective({"reconstruction": Value(1.0)}, {"reconstuction": 1.0})


def test_the_step_may_be_traced():
    objective = Objective({"a": Value(2.0)}, {"a": Linear(0.0, 1.0, 4)})
    np.testing.assert_allclose(jax.jit(lambda step: objective(SAE, FORWARD, step)[0])(1), 0.5)
