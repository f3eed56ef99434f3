"""Random weights keep shapes, dtypes and scales of a language model and nothing that it has learned."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import config, lm
from jhsae.commands import teach
from jhsae.errors import UserError


@pytest.fixture(scope="module")
def embedded():
    return lm.load("embedded", layers=1)


@pytest.mark.slow
def test_shapes_and_scales_stay_and_values_go(embedded):
    null, again, other = (lm.with_random_weights(embedded, seed) for seed in (0, 0, 1))
    assert eqx.tree_equal(null.model, again.model) and not eqx.tree_equal(null.model, other.model)
    for old, new in zip(jax.tree.leaves(embedded.model), jax.tree.leaves(null.model), strict=True):
        assert old.shape == new.shape and old.dtype == new.dtype
        if old.size > 500:
            assert float(jnp.std(new)) == pytest.approx(float(jnp.std(old)), rel=0.1)
            assert (
                abs(np.corrcoef(np.ravel(old), np.ravel(new))[0, 1]) < 0.1
            )  # the embedded model's start was drawn with seed 0
    assert "random" in null.name and null.sha256 != embedded.sha256 and other.sha256 != null.sha256
    assert null.tokenizer is embedded.tokenizer and null.model.config == embedded.model.config


def test_a_model_of_unknown_content_stays_unknown(embedded):
    bare = lm.LanguageModel(embedded.model, embedded.tokenizer, "bare")
    assert lm.with_random_weights(bare).sha256 is None
    with pytest.raises(UserError, match="seed is -1"):
        lm.with_random_weights(bare, -1)


def test_a_teacher_of_random_weights_is_another_config_and_the_default_is_the_same_one():
    path = config.find("teacher/embedded.yaml")
    own, null, held = (config.load(teach.Teach, path, words) for words in ([], ["lm.random=0"], ["held_out=0.3"]))
    assert "random" in null.lm.load(0).name and own.lm.load(0).name == "embedded"
    assert len({config.config_hash(c) for c in (own, null, held)}) == 3
    hashed = config.record._hashed(own)
    assert "held_out" not in hashed and "random" not in hashed["lm"]
