"""Steering: the plain computation, prompts and SAEs that matter, a known effect at the last layer, and controls."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from held_out import saes
from small_lm import EMBED, LAYER, VOCAB, save_language_model

from jhsae import evals, lm
from jhsae.data import Identity
from jhsae.errors import UserError
from jhsae.evals import Labels, SteeringTarget
from jhsae.sae import Forest

SPECIAL = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steering")
    save_language_model(folder)
    return lm.load(folder).model


@pytest.fixture(scope="module")
def prompts():
    ids = np.random.default_rng(0).integers(4, VOCAB, (4, 6))
    ids[:, 0] = 2
    return ids


def rows(sae):
    return np.asarray(sae.dictionary(), np.float32)


def steer(model, prompts, sae=None, targets=None, layer=LAYER, alpha=3.0, replace=None, **options):
    sae = saes()["tree"] if sae is None else sae
    own = rows(sae)
    targets = evals.own_targets(own, model.unembedding(), [0, 5, 13], sae.tree, 3, 2) if targets is None else targets
    replace = evals.Spliced(sae, Identity()) if replace is None else replace
    options = {"controls": 2, "batch": 2} | options
    return evals.steering(model, layer, replace, own, targets, prompts, SPECIAL, alpha, **options)


@pytest.mark.few(1)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_effect_equals_the_plain_computation(model, prompts, positions):
    sae = saes()["tree"]
    target = SteeringTarget(4, (7, 9), (9, 11, 12))
    found = steer(model, prompts, sae, [target], positions=positions)
    spliced, vector = evals.Spliced(sae, Identity()), 3.0 * rows(sae)[4]
    logits = jax.jit(lambda x: model.logits_from(x[None], LAYER)[0])
    residual = jax.jit(lambda ids: model.residual(ids[None], LAYER)[0])
    effects = []
    for prompt in prompts:
        x = residual(jnp.asarray(prompt, jnp.int32))
        base = spliced(x).at[0].set(x[0])  # position 0 is a special token
        steered = base.at[1:].add(vector) if positions == "all" else base.at[-1].add(vector)
        change = np.asarray(logits(steered) - logits(base))
        change = (
            (change - change.mean(-1, keepdims=True))[1:] if positions == "all" else change[-1:] - change[-1].mean()
        )
        rest = np.setdiff1d(np.arange(VOCAB), [7, 9, 11, 12])
        effects.append([change[:, group].mean() for group in ([7, 9], [11, 12], rest)])
    for i, kind in enumerate(("target", "siblings", "unrelated")):
        assert found[kind]["values"][0] == pytest.approx(np.mean(effects, axis=0)[i], abs=1e-4)
    np.testing.assert_allclose(found["by_prompt"][0], [e[0] for e in effects], atol=1e-4)
    assert found["selectivity"]["mean"] == pytest.approx(found["target"]["mean"] - found["siblings"]["mean"], abs=1e-5)


def test_it_depends_on_the_prompt_and_on_the_sae_as_the_original_did_not(model, prompts):
    """PolytopeSAE: logits + alpha U v behind the final norm, whatever the prompt and the SAE."""
    sae, vector = saes()["tree"], rows(saes()["tree"])[0]
    head = np.asarray(model.unembedding())
    hidden = np.asarray(model.residual(jnp.asarray(prompts, jnp.int32), model.layers))[:, -1]
    original = [(h + 3.0 * vector) @ head.T - h @ head.T for h in hidden]
    assert np.ptp(original, axis=0).max() < 1e-4
    targets = evals.own_targets(rows(sae), model.unembedding(), [0], sae.tree, 3, 2)
    ours = steer(model, prompts, sae, targets)["by_prompt"][0]
    assert np.ptp(ours) > 0.01
    identity = steer(model, prompts, sae, targets, replace=lambda x: x)["by_prompt"][0]
    assert np.abs(np.subtract(ours, identity)).max() > 0.01
    flat = evals.Spliced(saes()["topk"], Identity())
    other = steer(model, prompts, sae, targets, replace=flat)["by_prompt"][0]
    assert np.abs(np.subtract(ours, other)).max() > 0.01


def test_at_the_last_layer_a_latent_raises_its_own_tokens(model, prompts):
    found = steer(model, prompts, layer=model.layers, controls=8)
    assert found["target"]["units"] == [0, 5, 13] and found["target"]["mean"] > found["siblings"]["mean"]
    assert found["target"]["mean"] > 0 > found["unrelated"]["mean"]
    assert len(found["target"]["null"]) == len(found["target"]["null_values"]) == 8
    assert found["target"]["mean"] > max(found["target"]["null"])
    assert abs(np.mean(found["target"]["null"])) < found["target"]["mean"] / 2


def test_no_strength_has_no_effect(model, prompts):
    found = steer(model, prompts, alpha=0.0)
    assert found["target"]["mean"] == found["unrelated"]["mean"] == 0
    assert found["target"]["null"] == [0.0, 0.0]


def test_random_directions_have_the_norm_of_the_row(model, prompts, monkeypatch):
    seen, module = [], sys.modules["jhsae.evals.steering"]  # the name in jhsae.evals is the function's
    change = module._change
    monkeypatch.setattr(module, "_change", lambda *a: (seen.append(np.linalg.norm(a[4])), change(*a))[1])
    sae = saes()["tree"]
    steer(model, prompts, sae, [SteeringTarget(20, (5,), (6,))])
    assert seen == pytest.approx([3 * np.linalg.norm(rows(sae)[20])] * 6, rel=1e-4)


def test_targets_of_a_tree_and_of_classes(model):
    own = rows(saes()["tree"])
    tree = Forest((12, 4))
    found = evals.own_targets(own, model.unembedding(), [3, 17], tree, 4, 3)
    logits = own @ np.asarray(model.unembedding()).T
    assert found[0].tokens == tuple(np.argsort(-logits[3])[:4].tolist())
    siblings = {t for i in (16, 18, 19) for t in np.argsort(-logits[i])[:4].tolist()}  # atoms 16 to 19 of expert 1
    assert set(found[1].siblings) == siblings - set(found[1].tokens)
    labels = Labels(("a", "b"), {5: 0, 6: 1, 7: 0}, {}, {}, "a test")
    assert evals.class_targets(labels, {9: 0}) == [SteeringTarget(9, (5, 7), (6,))]


def test_empty_groups_zero_rows_and_prompts_without_a_position(model, prompts):
    sae = saes()["tree"]
    found = steer(model, prompts, sae, [SteeringTarget(0, (5,), ())])
    assert found["siblings"]["mean"] is found["selectivity"]["mean"] is None and found["target"]["mean"] is not None
    one = prompts.copy()
    one[1, -1] = 0
    assert [v is None for v in steer(model, one, sae)["by_prompt"][0]] == [False, True, False, False]
    target, nothing = SteeringTarget(1, (5,), (6,)), np.zeros((2, EMBED), np.float32)
    zero = evals.steering(model, LAYER, lambda x: x, nothing, [target], prompts, SPECIAL, 1.0)
    assert zero["target"]["mean"] is None and zero["target"]["null"] == [None] * 5


def test_what_cannot_be_steered_is_one_sentence(model, prompts):
    target = SteeringTarget(0, (5,), (6,))
    with pytest.raises(UserError, match="no prompt has a position to steer"):
        steer(model, prompts * 0, targets=[target])
    with pytest.raises(UserError, match="there is nothing to steer"):
        steer(model, prompts[:0], targets=[target])
    with pytest.raises(UserError, match="latent is 60, but there are 60"):
        steer(model, prompts, targets=[SteeringTarget(60, (5,), (6,))])
    with pytest.raises(UserError, match="token is 40, but the vocabulary has 40"):
        steer(model, prompts, targets=[SteeringTarget(0, (5, 40), (6,))])
    with pytest.raises(UserError, match="the rows have 3 numbers, but the residual stream 16"):
        evals.steering(model, LAYER, lambda x: x, np.ones((2, 3), np.float32), [target], prompts, SPECIAL, 1.0)
    with pytest.raises(UserError, match="positions is 'first'"):
        steer(model, prompts, targets=[target], positions="first")
