import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.teacher import Prompts
from jhsae.teacher.concepts import prompt_ids, siblings


def test_a_prompt_ends_at_its_word_and_all_have_one_length(world):
    tokens = (10, 11, 12)
    ids = prompt_ids(world.view(), "a kind of", tokens, {})
    assert ids.tolist() == [[2, 5, 5, 5, t] for t in tokens]
    ids = prompt_ids(world.view(), "not the {other} but the", tokens, {10: 20, 11: 21, 12: 22})
    assert ids.tolist() == [[2, 5, 5, t + 10, 5, 5, t] for t in tokens]


def test_the_other_word_is_of_a_sibling(world):
    tokens = tuple(sorted(t for c in world.concepts for t in c.tokens))
    others = siblings(world.concepts, (*tokens, 900, 901))
    for parent in world.concepts:
        for child in parent.children:
            for token in child.tokens:
                assert others[token] in set(parent.tokens) - set(child.tokens)
    assert others[900] not in (900, 901)


def test_samples_are_whitened_centred_activations_at_the_word(world):
    """The residual of this model at a position is a vector of the token there plus one of the position."""
    rng = np.random.default_rng(0)
    token, place = rng.normal(size=(3000, 24)), rng.normal(size=(20, 24))
    calls = []

    def residual(ids):
        calls.append(ids.shape)
        return (token[ids] + place[: ids.shape[1]]).astype(np.float32)

    samples = Prompts(templates=("the", "a kind of"), batch=4)(world.view(residual), world.concepts, range(10, 20))
    assert calls == [(4, 3)] * 3 + [(4, 5)] * 3
    M = np.asarray(world.geometry.residual.matrix, np.float64)
    oracle = np.stack([token[10:20] + place[2], token[10:20] + place[4]], axis=1) @ M.T
    np.testing.assert_allclose(samples.rows, oracle - oracle.mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(samples.of([11, 12]), samples.rows[1:3].reshape(4, 24))


def test_templates_that_cannot_work_are_named(world):
    with pytest.raises(UserError, match=r"templates is .*, expected at least one entry"):
        Prompts(templates=())
    with pytest.raises(UserError, match="more than once"):
        prompt_ids(world.view(), "{other} or {other} or", (10,), {10: 11})
