"""Every family computes what transformers' torch model computes, and is written so that transformers reads it."""

import json
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm.families import CASES, SIZES, VOCAB, close, everything, write
from lm.tiny import TIME, ids, tiny

from jhsae import lm
from jhsae.errors import UserError


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    return write(request.param, tmp_path_factory.mktemp(request.param))


def test_equals_torch(case):
    model = case.model()
    ours, residuals = everything(model, ids(VOCAB))
    close(ours, case.logits)
    for found, expected in zip(residuals[:-1], case.hidden[:-1], strict=True):
        close(found, expected)
    # transformers hands out its last hidden state normalised, so the head is held to the logits.
    close(logits_by_unembedding(model, residuals[-1]), case.logits)


def logits_by_unembedding(model, x):
    """The logits by the docstring of each family's `unembedding`, from the last residual stream."""
    gamma, eps = model.unembedding(), model.config.norm_eps
    if isinstance(model, lm.NeoX | lm.GPT2):
        np.testing.assert_allclose(gamma.sum(axis=1), 0, atol=1e-5)
        head = model.embedding if model.head is None else model.head
        return x @ gamma.T / jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + eps) + head @ model.final_norm_bias
    found = x @ gamma.T / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps)
    return 30 * jnp.tanh(found / 30) if isinstance(model, lm.Gemma2) else found


def test_saved_and_loaded_is_the_same_model_for_us_and_for_transformers(case, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, folder = case.model(), tmp_path / "saved"
    lm.save(model, tiny()[1], folder, dtype=jnp.float32)
    again = lm.load(folder).model
    assert jax.tree.structure(again) == jax.tree.structure(model), "the config too is the same"
    jax.tree.map(np.testing.assert_array_equal, again, model)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        close(theirs(input_ids=torch.tensor(np.asarray(ids(VOCAB)))).logits.numpy(), case.logits)


def test_first_layers_alone(case):
    whole, part = case.model(), case.model(layers=2)
    assert part.layers == 2 and part.config == whole.config.first(2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:2]), part.blocks, whole.blocks)


def test_shapes_are_those_of_the_loaded_model(case):
    model = case.model(dtype=jnp.bfloat16)
    shapes = lm.shapes(model.config, jnp.bfloat16)
    assert jax.tree.structure(shapes) == jax.tree.structure(model)
    assert [(s.shape, s.dtype) for s in jax.tree.leaves(shapes)] == [(a.shape, a.dtype) for a in jax.tree.leaves(model)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One folder per family, to be copied and spoiled."""
    return {name: write(name, tmp_path_factory.mktemp(name)) for name in ("llama", "mistral", "qwen3", "gpt_neox")}


def edited(written, name, tmp_path, changes):
    for file in written[name].folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((written[name].folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v != "absent"}))
    return tmp_path


@pytest.mark.parametrize("kind", ["gpt3x", "mixtral", "llama4", "gemma", "lama", ["llama"], None, "x" * 10**5])
def test_an_unknown_family_gets_the_list_and_no_guess(kind):
    with pytest.raises(UserError, match=r"model_type is .*, supported: gemma2, .*llama, .*gpt_neox; write") as caught:
        lm.config_of({"model_type": kind}, "config.json")
    assert "did you mean" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_type is 'yarn', supported: default, linear, llama3",
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear' needs factor; write"),
        ("llama", {"rms_norm_eps": "absent"}, "no rms_norm_eps"),
        ("llama", {"num_key_value_heads": 3}, "4 heads over 3 key-value heads"),
        ("llama", {"intermediate_size": 40}, r"gate_proj.weight is \(48, 32\), config.json makes it \(40, 32\)"),
        ("mistral", {"sliding_window": "absent"}, "no sliding_window; write its tokens, or null"),
        ("qwen3", {"head_dim": "absent"}, "no head_dim"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["a"]},
            "layer_types needs 3 entries",
        ),
        ("gpt_neox", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', only 'gelu'"),
        ("gpt_neox", {"num_attention_heads": 5}, "hidden_size 32 over 5 heads"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.4}}, "0.4 of 8 entries per head turn"),
    ],
)
def test_unsupported_settings(written, name, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        lm.load(edited(written, name, tmp_path, changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_parameters": "absent", "rope_theta": 50, "rope_scaling": {"type": "linear", "factor": 2}}),
        ("gpt_neox", {"rope_parameters": "absent", "rotary_emb_base": 50, "rotary_pct": 0.5}),
    ],
)
def test_the_older_spelling_of_rotary_positions(written, name, changes, tmp_path):
    config = lm.load(edited(written, name, tmp_path, changes)).model.config
    assert config.rope.rope_theta == 50.0 and isinstance(config.rope.rope_theta, float)
    if name == "gpt_neox":
        assert config.rotated == 4
    else:
        assert config.rope.factor == 2.0


def test_a_damaged_shard_is_named(written, tmp_path):
    folder = edited(written, "llama", tmp_path, {})
    shard = next(folder.glob("model-00001*"))
    half = shard.read_bytes()[:100]
    shard.unlink()
    shard.write_bytes(half)
    with pytest.raises(UserError, match=f"{shard.name} cannot be read as safetensors: its header is cut short"):
        lm.load(folder)


@pytest.mark.parametrize("layers", [(0,), (2, 0, 2)])
def test_several_layers_in_one_pass(written, layers):
    found = eqx.filter_jit(lambda m, i: m.residuals(i, layers))(written["llama"].model(), ids(VOCAB))
    assert found.shape == (len(layers), 2, TIME, SIZES["hidden_size"])
    for x, layer in zip(found, layers, strict=True):
        close(x, written["llama"].hidden[layer])


@pytest.mark.parametrize(("layers", "message"), [((), "residuals of no layers"), ((1, 4), "layer 4 of a model with 3")])
def test_layers_that_do_not_exist(written, layers, message):
    with pytest.raises(UserError, match=message):
        written["llama"].model().residuals(ids(VOCAB), layers)


def test_each_block_runs_once(written):
    """Layers in one pass cost the products of the deepest, not of each."""
    model = replace(written["llama"].model(), unroll=True)

    def flops(layers):
        return jax.jit(lambda i: model.residuals(i, layers)).lower(ids(VOCAB)).cost_analysis()["flops"]

    assert 1.9 * flops((1,)) < flops((1, 2, 3)) < 1.02 * flops((3,))


def test_bfloat16_rounds_operands_alone(written):
    rounded = written["llama"].model(dtype=jnp.bfloat16)
    found, expected = everything(rounded, ids(VOCAB))[0], written["llama"].logits
    assert found.dtype == jnp.float32 and rounded.blocks.q.dtype == jnp.bfloat16
    assert 1e-4 < jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected) < 5e-2
