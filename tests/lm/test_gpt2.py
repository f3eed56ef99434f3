"""Checkpoints of GPT-2 in every form that they come in, and its limit on the context."""

import jax.numpy as jnp
import numpy as np
import pytest
from lm.altered import IDS, logits_of, ours, random_model, settings, store, tensors, theirs, written
from lm.families import close

from jhsae import lm
from jhsae.errors import UserError

torch = pytest.importorskip("torch")
SIZES = {"n_positions": 14, "n_inner": 96, "bos_token_id": 2, "eos_token_id": 1}
CONV = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@pytest.fixture
def model():
    return random_model("GPT2", **SIZES)


@pytest.fixture
def folder(model, tmp_path):
    return written(tmp_path, model)


def renamed(folder, old, new):
    store(folder, {name.replace(old, new, 1): value for name, value in tensors(folder).items()})


def test_the_hubs_own_has_no_prefix_and_keeps_its_mask(folder):
    """openai-community/gpt2 was saved from a GPT2Model by an older version."""
    before = ours(folder)
    renamed(folder, "transformer.", "")
    mask = {f"h.{i}.attn.bias": torch.ones(1, 1, 14, 14).tril() for i in range(2)}
    store(folder, tensors(folder) | mask | {"h.0.attn.masked_bias": torch.tensor(-1e4)})
    np.testing.assert_array_equal(ours(folder), before)
    close(before, theirs(folder))


def test_settings_that_older_files_lack(folder, model):
    left_out = ("n_inner", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
    settings(folder, **dict.fromkeys((*left_out, "add_cross_attention", "activation_function"), "absent"), n_ctx=14)
    with pytest.raises(UserError, match=r"c_fc.weight is \(48, 96\), config.json makes it \(48, 192\)"):
        lm.load(folder)
    settings(folder, n_inner=96)
    close(ours(folder), logits_of(model))


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("transformer.h.2.ln_1.weight", "is beyond the 2 layers of"),
        ("transformer.h.0.crossattention.c_attn.weight", "is not part of a gpt2"),
        ("h.0.ln_1.weight", "is not part of a gpt2"),
        ("multiple_choice_head.summary.weight", "is not part of a gpt2"),
        ("score.weight", "belongs to a head for another task"),
    ],
)
def test_what_no_one_reads_is_refused(folder, new, message):
    store(folder, tensors(folder) | {new: torch.ones(48)})
    with pytest.raises(UserError, match=f"tensor {new} {message}"):
        lm.load(folder)


def test_a_sequence_beyond_the_last_position_is_refused(folder):
    model = lm.load(folder).model
    long = jnp.zeros((1, 15), jnp.int32)
    assert model(long[:, :14]).shape == (1, 14, 64)
    for call in (model, lambda ids: model.residual(ids, 0), lambda ids: model.residuals(ids, (1,))):
        with pytest.raises(UserError, match=r"context is 15, .* at most 14 tokens \(n_positions\); write a context of"):
            call(long)


def int8_rows(value):
    """What bitsandbytes stores of a Conv1D: a Linear, [outputs, inputs]; and what the weight then is."""
    scale = value.T.abs().amax(1)
    q = (value.T / scale[:, None] * 127).round().to(torch.int8)
    return {"weight": q, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}, (
        q * scale[:, None] / 127
    ).T


def test_8_bit_matrices_of_bitsandbytes_are_turned(folder, model):
    new, plain = {}, {}
    for name, value in tensors(folder).items():
        if not name.endswith(CONV):
            new[name] = plain[name] = value
            continue
        parts, plain[name] = int8_rows(value)
        new |= {name.removesuffix("weight") + suffix: part for suffix, part in parts.items()}
    assert new["transformer.h.0.attn.c_attn.weight"].shape == (144, 48)
    store(folder, new)
    settings(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    model.load_state_dict(plain, strict=False)
    close(ours(folder), logits_of(model))


def test_other_8_bit_matrices_are_refused(folder):
    name = "transformer.h.0.attn.c_proj.weight"
    found = tensors(folder)
    scale = {name.replace("weight", "weight_scale"): torch.tensor(0.1)}
    store(folder, found | {name: found[name].to(torch.float8_e4m3fn)} | scale)
    settings(folder, quantization_config={"quant_method": "fbgemm_fp8"})
    with pytest.raises(UserError, match=r"c_proj\.weight .* without SCB beside it, and whether its rows are inputs"):
        lm.load(folder)


def test_weights_that_are_pickled_alone_are_not_read(folder):
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        lm.load(folder)


def test_the_first_layers_keep_their_scales(tmp_path):
    folder = written(tmp_path, random_model("GPT2", **SIZES, scale_attn_by_inverse_layer_idx=True))
    whole, part = lm.load(folder).model, lm.load(folder, layers=1).model
    ids = jnp.asarray(IDS, jnp.int32)
    close(part.residual(ids, 1), whole.residual(ids, 1))
    assert whole.config.scales == (12**-0.5, 12**-0.5 / 2)
