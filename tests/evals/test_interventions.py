"""An SAE inside a language model: no edit, no change; edits are ten plain lines, gradients are finite differences.

The oracles decode densely and undo each normaliser by its own formula.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from held_out import saes
from lm.families import CASES, VOCAB, close, write
from small_lm import EMBED, LAYER, save_language_model

import jhsae
from jhsae import evals, lm
from jhsae.data import CenterScale, Identity, UnitNorm
from jhsae.data.normalize import ArrayRows, LayerNorm, Whiten
from jhsae.errors import UserError
from jhsae.evals.interventions import Prompts, ablation_effects, tokenised
from jhsae.evals.interventions.steer import members
from jhsae.features.names import rows_named
from jhsae.sae import AbstractSAE, FlatSAE, GatedSAE, HierarchicalSAE, MatchingPursuitSAE, ScaledByParent
from jhsae.sparsify import TopK

PROMPTS = ["w5 w6 w7 w8", "w9 w10", "w11 w12 w13 w14 w15 w16"]
KEY = jax.random.key(4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interventions")
    save_language_model(folder)
    return lm.load(folder)


@pytest.fixture(scope="module")
def rows(model):
    """Residual streams to fit normalisers on."""
    ids = np.random.default_rng(0).integers(4, 40, (20, 10))
    return np.asarray(model.model.residual(jnp.asarray(ids), LAYER)).reshape(-1, EMBED)


def kinds() -> dict[str, AbstractSAE]:
    scaled = HierarchicalSAE(EMBED, 6, 3, 4, TopK(3), TopK(2), child_scale=ScaledByParent(), key=KEY)
    gated = GatedSAE(EMBED, 20, key=KEY)
    return {**saes(), "scaled": scaled, "gated": gated, "mp": MatchingPursuitSAE(EMBED, 20, max_iterations=5, key=KEY)}


def undone(normalizer, x, vector):
    """What a vector of the SAE's units is in those of the model, at each row of x."""
    match type(normalizer).__name__:
        case "Identity":
            return np.broadcast_to(vector, x.shape)
        case "CenterScale":
            return np.broadcast_to(vector * float(normalizer.scale), x.shape)
        case "UnitNorm":
            return vector * (np.linalg.norm(x, axis=1, keepdims=True) + 1e-6)
        case "LayerNorm":
            return vector * x.std(axis=1, keepdims=True, ddof=1)
        case "Whiten":
            return np.broadcast_to(vector @ np.asarray(normalizer.inverse), x.shape)
    raise AssertionError(normalizer)


NORMALIZERS = {"none": Identity(), "center": CenterScale(), "unit": UnitNorm(), "layer": LayerNorm(), "white": Whiten()}
FIRST = [("tree", "unit"), ("topk", "white"), ("forest", "center"), ("dense_tree", "layer")]
PAIRS = [*FIRST, *((k, n) for k in kinds() for n in NORMALIZERS if (k, n) not in FIRST)]
FAMILIES = [*(first := ["gemma2", "llama", "gpt_neox"]), *sorted(set(CASES) - set(first))]


def plain_codes(inside, x):
    """Dense codes of rows in the model's units."""
    return np.array(inside.sae.encode(inside.normalizer(jnp.asarray(x))[0]).dense())


def stream(model, ids):
    return np.asarray(model.model.residual(jnp.asarray([ids], jnp.int32), LAYER))[0]


def logits(model, x):
    return np.asarray(jax.jit(lambda x: model.model.logits_from(x, LAYER))(jnp.asarray(x)[None]))[0]


@eqx.filter_jit
def plainly(model, ids):
    """The logits of a language model without an SAE."""
    return model(ids)


def active(inside, ids):
    """A latent of the last level that is active on a prompt, its position there, and the dense codes."""
    codes = plain_codes(inside, stream(inside.model, ids))
    codes[0] = 0  # BOS
    position, row = np.unravel_index(np.argmax(np.abs(codes) * (np.arange(codes.shape[1]) + 1)), codes.shape)
    return int(row), int(position), codes


@pytest.mark.few(4)
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_without_an_edit_the_model_is_what_it_was(model, rows, kind, name):
    normalizer = NORMALIZERS[name].fit(ArrayRows(rows))
    inside = jhsae.with_sae(model, kinds()[kind], LAYER, normalizer=normalizer)
    found = inside.run(PROMPTS)
    assert np.array_equal(found.stream, found.read.x)
    np.testing.assert_allclose(found.logits, plainly(model.model, found.prompts.ids), rtol=0, atol=1e-6)


@pytest.mark.few(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_what_it_was_and_is_steered(family, tmp_path):
    model = lm.LanguageModel(write(family, tmp_path / "lm").model(), lm.load("embedded").tokenizer, family)
    sae = FlatSAE(32, 40, TopK(5), key=KEY)
    prompt = Prompts(jnp.array([[2, 9, 12, 30, 7]]), jnp.array([5]), jnp.array([[False, True, True, True, True]]))
    inside = jhsae.with_sae(model, sae, 1)
    found = inside.run(prompt)
    close(found.logits, plainly(model.model, prompt.ids), 1e-6)
    steered = evals.steer(inside, prompt, "f3", evals.AddShare(2.0), controls=40, own_tokens=3)
    assert np.isfinite(steered.effects).all() and np.abs(steered.effects).max() > 1e-3
    got, last = evals.attribute(inside, prompt, 4, VOCAB - 3), found.logits[0, -1]
    assert got.gap < 0.05 and got.difference == pytest.approx(float(last[4] - last[VOCAB - 3]), abs=1e-5)


@pytest.mark.few(4)
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_edits_are_the_plain_computation(model, rows, kind, name):
    normalizer = NORMALIZERS[name].fit(ArrayRows(rows))
    inside = jhsae.with_sae(model, kinds()[kind], LAYER, normalizer=normalizer)
    ids = tokenised(PROMPTS[2], model).tokens(0)
    x = stream(model, ids)
    row, _, codes = active(inside, ids)
    vector, own = undone(normalizer, x, np.asarray(inside.sae.dictionary())[row]), codes[:, row, None]
    parent = inside.sae.latent_parents()[row]
    above = codes[:, parent, None] if parent >= 0 else np.ones_like(own)
    length = np.linalg.norm(vector, axis=1, keepdims=True)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    changes = [
        (evals.Ablate(), -own),
        (evals.Set(1.5), 1.5 - own),
        (evals.Add(-2.0), -2.0 + 0 * own),
        (evals.AddShare(0.4), 0.4 * norms / length),
    ]
    if parent >= 0:
        changes += [
            (evals.Add(2.0, within=evals.WhereParentActive()), 2.0 * (above != 0)),
            (evals.Set(2.0, within=evals.TimesParent()), np.where(above != 0, 2.0 * above - own, 0)),
        ]
    live = (np.arange(len(x)) > 0)[:, None]
    for edit, change in changes:
        expected = logits(model, np.where(live, x + change * vector, x))
        got = inside.run(PROMPTS[2], {row: edit}).logits[0]
        np.testing.assert_allclose(got, expected, atol=2e-4, err_msg=f"{kind} {normalizer} {edit}")


def test_the_last_token_alone_and_the_norm_that_was_kept(model):
    inside = jhsae.with_sae(model, kinds()["topk"], LAYER)
    plain = inside.run(PROMPTS)
    edits = {"f3": evals.Add(5.0)}
    found = inside.run(PROMPTS, edits, positions="last", norm="kept")
    changed = np.any(np.asarray(found.stream != plain.stream), axis=-1)
    assert np.array_equal(np.argwhere(changed), [[i, int(n)] for i, n in enumerate(plain.prompts.last)])
    norms = [np.linalg.norm(a, axis=-1) for a in (found.stream, plain.stream)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)
    free = inside.run(PROMPTS, edits, positions="last")
    assert np.abs(np.linalg.norm(free.stream, axis=-1) - norms[1]).max() > 1


def test_without_the_error_term_the_reconstruction_is_spliced(model, rows):
    normalizer = CenterScale().fit(ArrayRows(rows))
    sae = kinds()["tree"]
    inside = jhsae.with_sae(model, sae, LAYER, normalizer=normalizer, error="dropped")
    found = inside.run(PROMPTS[0])
    x = stream(model, found.prompts.tokens(0))
    spliced = np.asarray(evals.Spliced(sae, normalizer)(jnp.asarray(x)))
    expected = logits(model, np.where((np.arange(len(x)) > 0)[:, None], spliced, x))
    np.testing.assert_allclose(found.logits[0], expected, atol=1e-5)
    assert np.abs(expected - logits(model, x)).max() > 0.01


def test_prompts_of_other_lengths_do_not_touch_each_other(model):
    inside = jhsae.with_sae(model, kinds()["forest"], LAYER)
    together = inside.run(PROMPTS, {"e0": evals.AddShare(1.0)})
    for i, prompt in enumerate(PROMPTS):
        alone = inside.run(prompt, {"e0": evals.AddShare(1.0)})
        n = alone.logits.shape[1]
        np.testing.assert_allclose(together.logits[i, :n], alone.logits[0], atol=1e-4)


def test_an_expert_with_all_below_it(model):
    inside = jhsae.with_sae(model, kinds()["scaled"], LAYER)
    found = inside.run(PROMPTS)
    rows = rows_named("e2/*", inside.sae)
    assert rows == [2, *range(6 + 8, 6 + 12)]
    whole = inside.run(PROMPTS, {"e2/*": evals.Ablate()})
    each = inside.run(PROMPTS, {row: evals.Ablate() for row in rows})
    np.testing.assert_allclose(whole.stream, each.stream, atol=1e-5)
    assert np.abs(whole.stream - found.stream).max() > 0.01


@pytest.mark.few(4)
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_an_attribution_is_a_derivative_and_its_sum_the_effect(model, rows, kind, name):
    normalizer = NORMALIZERS[name].fit(ArrayRows(rows))
    sae = kinds()[kind]
    inside = jhsae.with_sae(model, sae, LAYER, normalizer=normalizer)
    found = evals.attribute(inside, PROMPTS[2], 7, 9, path=evals.AtStream())
    x, dictionary = stream(model, found.prompt), np.asarray(sae.dictionary())
    codes = plain_codes(inside, x) * (np.arange(len(x)) > 0)[:, None]
    assert np.array_equal(np.unique(found.features), np.flatnonzero(codes.any(axis=0)))
    for i in np.argsort(-np.abs(found.scores))[:3]:
        t, row = found.positions[i], found.features[i]
        step = np.zeros_like(x)
        step[t] = codes[t, row] * undone(normalizer, x, dictionary[row])[t]
        up, down = (logits(model, x + h * step)[-1] for h in (0.01, -0.01))
        slope = ((up[7] - up[9]) - (down[7] - down[9])) / 0.02
        assert found.scores[i] == pytest.approx(slope, rel=0.02, abs=2e-3)
    along = evals.attribute(inside, PROMPTS[2], 7, 9)
    written = sum(codes[:, [row]] * undone(normalizer, x, dictionary[row]) for row in np.unique(found.features))
    full, none = logits(model, x)[-1], logits(model, x - written)[-1]
    effect = (full[7] - full[9]) - (none[7] - none[9])
    assert along.effect == pytest.approx(effect, abs=1e-3)
    assert along.sum == pytest.approx(along.effect, rel=0.05, abs=1e-3)
    assert sum(along.by_latent().values()) == pytest.approx(along.sum)


def test_effects_of_single_ablations(model):
    inside = jhsae.with_sae(model, kinds()["tree"], LAYER)
    found = evals.attribute(inside, PROMPTS[0])
    latents = list(found.by_latent())[:2]
    run = inside.run(PROMPTS[0], {latents[1]: evals.Ablate()}).logits[0, -1]
    expected = found.difference - float(run[found.token] - run[found.than])
    assert ablation_effects(inside, PROMPTS[0], found, latents)[1] == pytest.approx(expected, abs=1e-5)
    order = np.argsort(-np.asarray(inside.run(PROMPTS[0]).logits[0, -1]))
    assert [found.token, found.than] == order[:2].tolist()


@pytest.mark.parametrize("norm", ["free", "kept"])
def test_the_null_is_a_random_direction_of_the_same_norm(model, norm):
    inside = jhsae.with_sae(model, kinds()["tree"], LAYER, normalizer=UnitNorm())
    found = evals.steer(inside, PROMPTS, "e1/a2", evals.Add(0.7), [7, 9], controls=40, norm=norm, batch=2)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(40, EMBED))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    plain = inside.run(PROMPTS)
    steered = inside.run(PROMPTS, {"e1/a2": evals.Add(0.7)})
    lengths = np.linalg.norm(steered.stream - plain.stream, axis=-1)
    for i in range(3):
        n = int(plain.prompts.lengths[i])
        x = np.asarray(plain.stream[i, :n])
        for k, direction in enumerate([None, directions[0], directions[39]]):
            added = np.asarray(steered.stream[i, :n]) - x if direction is None else lengths[i, :n, None] * direction
            moved = x + added
            if norm == "kept":
                moved *= np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(moved, axis=1, keepdims=True)
            change = logits(model, moved)[-1] - logits(model, x)[-1]
            got = found.effects[i] if direction is None else found.null[[0, 0, 39][k], i]
            assert got == pytest.approx(change[[7, 9]].mean() - change.mean(), abs=3e-4)
    assert found.comparison().draws == 40 and found.edited.tolist() == [4, 2, 6]
    margin = found.margin()
    assert margin.estimate == pytest.approx(found.effects.mean() - found.null.mean(), abs=1e-5)


def test_a_latent_raises_its_own_tokens_at_the_last_layer(model):
    inside = jhsae.with_sae(model, kinds()["topk"], model.model.layers)
    found = evals.steer(inside, PROMPTS, "f4", evals.AddShare(1.0), own_tokens=3)
    logit = np.asarray(inside.sae.dictionary()[4] @ model.model.unembedding().T)
    assert found.tokens == tuple(np.argsort(-logit)[:3].tolist())
    assert found.effects.min() > 0 and found.comparison().significant and found.margin().low > 0
    assert np.asarray(members([3, 5], 8)).sum() == pytest.approx(1)


def test_an_edit_that_applies_nowhere_has_no_effect(model):
    inside = jhsae.with_sae(model, kinds()["tree"], LAYER)
    codes = np.asarray(inside.run("w5 w6").read.codes.parents.dense())[1:]
    silent = int(np.flatnonzero(~codes.any(axis=0))[0])
    within = evals.Add(3.0, within=evals.WhereParentActive())
    found = evals.steer(inside, "w5 w6", f"e{silent}/a0", within, controls=40)
    assert np.isnan(found.effects).all() and found.comparison() is None and found.margin() is None
    assert found.edited.tolist() == [0]


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_continuation_is_the_likeliest_token_again_and_again(model, positions):
    inside = jhsae.with_sae(model, kinds()["jump"], LAYER)
    edits = {"f2": evals.AddShare(0.8)}
    got = evals.continued(inside, PROMPTS[:2], 3, edits, positions=positions)
    vector = np.asarray(inside.sae.dictionary())[2]
    for prompt, new in zip(PROMPTS, got, strict=False):
        ids = tokenised(prompt, model).tokens(0)
        start = len(ids) - 1 if positions == "last" else 1
        for token in new:
            x = stream(model, ids)
            ordinary = ~np.isin(ids, [0, 1, 2]) & (np.arange(len(x)) >= start)
            share = 0.8 * np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(vector)
            assert token == int(logits(model, x + ordinary[:, None] * share * vector)[-1].argmax())
            ids.append(token)
    assert got != evals.continued(inside, PROMPTS[:2], 3)


def refused(match):
    return pytest.raises(UserError, match=match)


def test_what_cannot_be_is_one_sentence(model):
    sae, loaded = kinds()["tree"], {"reads": {"model": "other/model", "layer": LAYER}}
    inside = jhsae.with_sae(model, sae, LAYER)
    with refused("layer is not given"):
        jhsae.with_sae(model, sae)
    with refused("layer is 3, but .* has 2 blocks; write a layer from 0 to 2"):
        jhsae.with_sae(model, sae, 3)
    with refused("layer is 2, but the SAE reads layer 1; write layer=1"):
        jhsae.with_sae(model, (sae, Identity(), {"reads": {"model": None, "layer": 1}}), 2)
    with refused("the SAE reads other/model, but the model is"):
        jhsae.with_sae(model, (sae, Identity(), loaded))
    with refused("normalizer is given twice"):
        jhsae.with_sae(model, (sae, Identity(), loaded), normalizer=Identity())
    with refused("reads vectors of 8 numbers, but the residual stream"):
        jhsae.with_sae(model, FlatSAE(8, 9, TopK(1), key=KEY), 1)
    with refused("error is 'left'"):
        jhsae.with_sae(model, sae, 1, error="left")
    with refused("there is no prompt"):
        inside.run([])
    with refused("prompt 1 is empty"):
        inside.run(["w5", " "])
    with refused("prompt 0 is empty"):
        inside.run("<bos>")
    with refused("latent 1 is edited twice"):
        inside.run("w5", {"e1": evals.Ablate(), 1: evals.Ablate()})
    with refused("latent e1 has no latent above it, which TimesParent asks about"):
        inside.run("w5", {"e1": evals.Add(1.0, within=evals.TimesParent())})
    with refused("token is 'w5 w6', which is not one token of this model but ' ?w5', ' ?w6'"):
        evals.attribute(inside, "w5", "w5 w6")
    with refused("token is 'walrus', which is not one token"):
        evals.attribute(inside, "w5", "walrus")
    with refused("token is 40, but the vocabulary has 40"):
        evals.attribute(inside, "w5", 40)
    with refused("token and than are both token 5"):
        evals.attribute(inside, "w5", "w5", 5)
    with refused("there are 3 prompts, expected 1"):
        evals.attribute(inside, inside.prompts(PROMPTS))
    with refused(r"prompt is \['w5'\] \(list\), expected text"):
        evals.attribute(inside, ["w5"])
    with refused("tokens is an empty list"):
        evals.steer(inside, "w5", "e1", evals.Ablate(), [])
    with refused("controls is 5, expected at least 40"):
        evals.steer(inside, "w5", "e1", evals.Ablate(), controls=5)
    with refused("stream or logits are not finite with latent e1 edited"):
        evals.steer(inside, "w5", "e1", evals.Add(1e38))
    with refused("value is nan"):
        evals.Add(float("nan"))


def test_a_prompt_that_is_too_long(model, tmp_path):
    found = lm.LanguageModel(write("gpt_neox", tmp_path / "lm").model(), model.tokenizer, "neox")
    most = found.model.config.positions
    inside = jhsae.with_sae(found, FlatSAE(32, 9, TopK(1), key=KEY), 1)
    with refused(f"the model was made for at most {most} tokens"):
        inside.run(" ".join(["w5"] * (most + 1)))
    with refused(f"at most {most} tokens"):
        evals.continued(inside, " ".join(["w5"] * (most - 2)), 5)


def test_what_load_sae_gives_brings_its_normaliser_and_layer(model, rows):
    normalizer = CenterScale().fit(ArrayRows(rows))
    sae, about = kinds()["tree"], {"reads": {"model": model.name, "layer": LAYER, "model_sha256": model.sha256}}
    inside = jhsae.with_sae(model, (sae, normalizer, about))
    assert inside.layer == LAYER and inside.normalizer is normalizer
