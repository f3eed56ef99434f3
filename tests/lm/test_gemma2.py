"""The Equinox Gemma-2 computes what transformers' torch Gemma-2 computes."""

import jax.numpy as jnp
import numpy as np
import pytest
from lm.tiny import TIME, ids, logits, logits_from, residual, tiny

from jhsae import lm
from jhsae.errors import UserError

LAYERS = range(5)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """(our model, torch logits, torch hidden states) of one random checkpoint that transformers wrote."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 5, "query_pre_attn_scalar": 11,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attn_implementation": "eager",
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Far from the zeros of initialisation, so that 1 + w and the caps matter.
            weight.copy_(torch.randn_like(weight) * (0.3 if "norm" in name else 0.2))
    folder = tmp_path_factory.mktemp("oracle")
    model.save_pretrained(folder)
    tiny_tokenizer = tiny()[1]
    tiny_tokenizer.save_pretrained(folder)
    with torch.no_grad():
        out = model(input_ids=torch.tensor(np.asarray(ids(61))), output_hidden_states=True, use_cache=False)
    return lm.load(folder).model, out.logits.numpy(), [h.numpy() for h in out.hidden_states]


def test_logits_equal_torch(oracle):
    model, expected, _ = oracle
    assert model.config.window < TIME, "or the sliding window is not tested"
    np.testing.assert_allclose(logits(model, ids(61)), expected, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_residual_equals_hidden_states(oracle, layer):
    model, expected, hidden = oracle
    x = residual(model, ids(61), layer)
    if layer < model.layers:
        np.testing.assert_allclose(x, hidden[layer], atol=1e-5)
    else:  # transformers normalises its last hidden state, and the logits are capped products with it
        gamma = model.unembedding()
        rms = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + model.config.norm_eps)
        np.testing.assert_allclose(3 * jnp.tanh(x / rms @ gamma.T / 3), expected, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_splicing_the_residual_itself_changes_nothing(layer):
    model, _ = tiny()
    np.testing.assert_allclose(
        logits_from(model, residual(model, ids(), layer), layer), logits(model, ids()), atol=1e-5
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_splicing_another_residual_changes_the_logits_from_there_on(layer):
    model, _ = tiny()
    x = residual(model, ids(), layer).at[:, 3].multiply(-1.0)
    change = jnp.abs(logits_from(model, x, layer) - logits(model, ids())).max(axis=(0, 2))
    assert change[3] > 1e-2 and change[:3].max() < 1e-5
    assert (change[4:].max() > 1e-4) == (layer < model.layers), "later tokens read it through attention alone"


def test_sliding_window_hides_the_far_past():
    model, _ = tiny()
    config = lm.Gemma2Config(**{**vars(model.config), "sliding": (True, False, False, False)})
    local = lm.Gemma2(model.embedding, model.blocks, model.final_norm, config)
    other = ids().at[:, 0].add(1) % model.vocab
    near, far = model.config.window - 1, model.config.window
    change = jnp.abs(residual(local, other, 1) - residual(local, ids(), 1)).max(axis=(0, 2))
    assert change[near] > 1e-4 and change[far:].max() == 0


def test_unrolling_changes_no_number_and_bfloat16_few():
    model, _ = tiny()
    parts = (model.embedding, model.blocks, model.final_norm, model.config)
    expected = logits(model, ids())
    np.testing.assert_allclose(logits(lm.Gemma2(*parts, unroll=True), ids()), expected, atol=1e-5)
    rounded = logits(lm.Gemma2(*parts, matmul_dtype="bfloat16"), ids())
    error = jnp.linalg.norm(rounded - expected) / jnp.linalg.norm(expected)
    assert 1e-4 < error < 3e-2 and rounded.dtype == jnp.float32


@pytest.mark.parametrize("layer", [-1, 5])
@pytest.mark.parametrize("method", ["residual", "logits_from"])
def test_layer_out_of_range(method, layer):
    model, _ = tiny()
    argument = ids() if method == "residual" else jnp.zeros((2, TIME, model.embed))
    with pytest.raises(UserError, match=f"layer {layer} of a model with 4 blocks"):
        getattr(model, method)(argument, layer)
