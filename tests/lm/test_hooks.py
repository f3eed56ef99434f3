"""Activations inside the blocks: against modules of transformers, and edits of them in a pass."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm.families import CASES, VOCAB, close, write
from lm.tiny import ids, tiny

from jhsae.errors import UserError

# where transformers has the module whose output is attn_out, the MLP, and the module whose output is mlp_out
PLACES = {
    "gemma2": ("model.layers.{}.post_attention_layernorm", "mlp", "post_feedforward_layernorm"),
    "gemma3": ("model.layers.{}.post_attention_layernorm", "mlp", "post_feedforward_layernorm"),
    "gpt2": ("transformer.h.{}.attn", "mlp", "mlp"),
    "gpt_neox": ("gpt_neox.layers.{}.attention", "mlp", "mlp"),
}
OTHERS = ("model.layers.{}.self_attn", "mlp", "mlp")
BLOCK = 1


def of_transformers(folder, name):
    """resid, attn_out, mlp_in and mlp_out of one block, by forward hooks in torch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    attention, mlp, after = PLACES.get(name.partition("-")[0], OTHERS)
    path = attention.format(BLOCK)
    block = path.rpartition(".")[0]
    found = {}

    def keep(key, which):
        def hook(module, inputs, output):
            value = output if which == "out" else inputs[0]
            found[key] = (value[0] if isinstance(value, tuple) else value).detach().numpy()

        return hook

    model.get_submodule(path).register_forward_hook(keep("attn_out", "out"))
    model.get_submodule(f"{block}.{mlp}").register_forward_hook(keep("mlp_in", "in"))
    model.get_submodule(f"{block}.{after}").register_forward_hook(keep("mlp_out", "out"))
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor(np.asarray(ids(VOCAB))), output_hidden_states=True).hidden_states
    return found | {"resid": hidden[BLOCK].numpy()}


@pytest.mark.parametrize("name", CASES)
def test_hooks_are_those_of_transformers(name, tmp_path):
    oracle = write(name, tmp_path / "lm")
    expected = of_transformers(tmp_path / "lm", name)
    hooks = [(hook, BLOCK) for hook in ("mlp_out", "resid", "attn_out", "mlp_in")]
    found = eqx.filter_jit(lambda m, i: m.hooked(i, hooks))(oracle.model(), ids(VOCAB))
    for (hook, _), values in zip(hooks, found, strict=True):
        close(values, expected[hook])


@pytest.fixture(scope="module")
def model():
    return tiny()[0]


def test_one_pass_gives_every_hook_in_the_order_asked_for(model):
    hooks = [("mlp_in", 2), ("resid", 4), ("resid", 0), ("mlp_out", 0), ("mlp_in", 2), ("attn_out", 3), ("resid", 2)]
    found = eqx.filter_jit(lambda m, i: m.hooked(i, hooks))(model, ids())
    residuals = model.residuals(ids(), tuple(range(5)))
    for slot, (name, block) in enumerate(hooks):
        if name == "resid":
            np.testing.assert_allclose(found[slot], residuals[block], rtol=1e-6, atol=1e-6)
        else:
            alone = model.hooked(ids(), [(name, block)])[0]
            np.testing.assert_allclose(found[slot], alone, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[0], found[4])
    attention, mlp = model.hooked(ids(), [("attn_out", 2), ("mlp_out", 2)])
    np.testing.assert_allclose(residuals[2] + attention + mlp, residuals[3], rtol=1e-5, atol=1e-5)


def test_blocks_after_the_last_hook_do_not_run(model):
    def flops(hook):
        return jax.jit(lambda i: model.hooked(i, [hook])).lower(ids()).cost_analysis()["flops"]

    model = replace(model, unroll=True)
    assert flops(("resid", 1)) < flops(("mlp_out", 1)) < flops(("mlp_out", 3))


def test_an_edit_that_changes_nothing_gives_the_same_logits_and_order_of_hooks(model):
    seen = []

    def tap(name, value):
        seen.append(name)
        return value

    np.testing.assert_allclose(model.edited(ids(), {1: tap, 3: tap}), model(ids()), rtol=1e-5, atol=1e-6)
    assert seen == ["resid", "attn_out", "mlp_in", "mlp_out"] * 2


def test_an_edit_of_an_mlp_is_the_residual_stream_without_it(model):
    def without(name, value):
        return jnp.zeros_like(value) if name == "mlp_out" else value

    residual, mlp = model.hooked(ids(), [("resid", 2), ("mlp_out", 1)])
    expected = model.logits_from(residual - mlp, 2)
    np.testing.assert_allclose(model.edited(ids(), {1: without}), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.edited(ids(), {1: without}, until=2), residual - mlp, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([], "write at least one"),
        ([("mlp_in", 4)], r"hook mlp_in.4 of a model with 4 blocks; write mlp_in.0 to mlp_in.3"),
        ([("resid", 5)], r"write resid.0 to resid.4"),
        ([("q_in", 0)], r"hook 'q_in' in a model of type gemma2, which has resid, attn_out, mlp_in, mlp_out"),
    ],
)
def test_a_hook_that_is_not_there_is_refused(model, hooks, message):
    with pytest.raises(UserError, match=message):
        model.hooked(ids(), hooks)
