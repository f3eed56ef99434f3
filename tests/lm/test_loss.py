import jax
import jax.numpy as jnp
import numpy as np

from jhsae import lm


def test_cross_entropy_is_minus_log_probability_of_the_next_token():
    logits = np.asarray(5 * jax.random.normal(jax.random.key(0), (2, 4, 7)))
    ids = np.array([[0, 6, 3, 3], [5, 1, 0, 2]])
    expected = [
        [-np.log(np.exp(logits[b, t, ids[b, t + 1]]) / np.exp(logits[b, t]).sum()) for t in range(3)] for b in range(2)
    ]
    found = lm.cross_entropy(jnp.asarray(logits), jnp.asarray(ids))
    np.testing.assert_allclose(found, expected, atol=1e-5)
