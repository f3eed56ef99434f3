"""8-bit weights with scales are what torch makes of them; every other quantisation is refused by its name."""

import numpy as np
import pytest
from lm.altered import logits_of, ours, random_model, settings, store, tensors, theirs, written
from lm.families import close

from jhsae import lm
from jhsae.errors import UserError

torch = pytest.importorskip("torch")
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}


@pytest.fixture
def model():
    return random_model()


@pytest.fixture
def folder(model, tmp_path):
    return written(tmp_path, model)


def quantise(folder, model, make, **config):
    """Replaces every projection by what `make` gives: tensors to store by suffix, and the weight they stand for."""
    new, plain = {}, {}
    for name, value in tensors(folder).items():
        if not name.endswith("proj.weight"):
            new[name] = plain[name] = value
            continue
        parts, plain[name] = make(value)
        new |= {name.removesuffix("weight") + suffix: part for suffix, part in parts.items()}
    store(folder, new)
    if config:
        settings(folder, quantization_config=config)
    model.load_state_dict(plain)


def int8_rows(value):
    scale = value.abs().amax(1)
    q = (value / scale[:, None] * 127).round().to(torch.int8)
    return {"weight": q, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}, q * scale[:, None] / 127


def fp8_blocks(size, kind="weight_scale_inv", dtype=torch.float32):
    """fp8 in blocks of `size`, those at the edges cut off."""

    def make(value):
        rows, columns = value.shape
        grid = torch.rand(-(-rows // size), -(-columns // size)) * 0.01 + 0.001
        grid = grid.to(dtype).float()
        scale = grid.repeat_interleave(size, 0)[:rows].repeat_interleave(size, 1)[:, :columns]
        q = (value / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"weight": q, kind: grid.to(dtype)}, q.float() * scale

    return make


def fp8_rows(value):
    scale = value.abs().amax(1, keepdim=True) / 448
    q = (value / scale).to(torch.float8_e4m3fn)
    return {"weight": q, "weight_scale": scale, "input_scale": torch.tensor(0.1)}, q.float() * scale


def one_scale(kind, shape):
    def make(value):
        scale = value.abs().max() / 448
        q = (value / scale).to(torch.float8_e4m3fn)
        return {"weight": q, kind: scale.reshape(shape).clone()}, q.float() * scale

    return make


def int8_with_zero(value):
    scale = value.abs().amax(1, keepdim=True) / 100
    zero = torch.full(scale.shape, 7, dtype=torch.int8)
    q = ((value / scale).round() + 7).to(torch.int8)
    return {"weight": q, "weight_scale": scale, "weight_zero_point": zero}, (q - 7.0) * scale


def int8_groups(value):
    scale = value.reshape(len(value), -1, 16).abs().amax(2) / 127
    whole = scale.repeat_interleave(16, 1)
    q = (value / whole).round().to(torch.int8)
    return {"weight": q, "weight_scale": scale}, q * whole


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        (int8_rows, {}),
        (fp8_blocks(16), FP8 | {"weight_block_size": [16, 16]}),
        (fp8_blocks(20), FP8 | {"weight_block_size": [20, 20]}),
        (fp8_blocks(16, dtype=torch.float8_e8m0fnu), FP8 | {"weight_block_size": [16, 16], "scale_fmt": "ue8m0"}),
        (one_scale("weight_scale_inv", (1,)), {}),
        (one_scale("weight_scale_inv", (1, 1)), FP8 | {"weight_block_size": [128, 128]}),
        (one_scale("weight_scale_inv", ()), FP8),
        (one_scale("weight_scale", (1,)), COMPRESSED),
        (fp8_rows, COMPRESSED),
        (fp8_rows, {"quant_method": "fbgemm_fp8"}),
        (
            fp8_blocks(16, "weight_scale", torch.bfloat16),
            COMPRESSED | {"config_groups": {"group_0": {"weights": {"num_bits": 8, "block_structure": [16, 16]}}}},
        ),
        (int8_with_zero, COMPRESSED | {"format": "int-quantized"}),
        (int8_groups, COMPRESSED | {"format": "int-quantized"}),
    ],
)
def test_scaled_weights_are_multiplied_out(folder, model, make, config):
    quantise(folder, model, make, **config)
    close(ours(folder), logits_of(model))


@pytest.mark.parametrize("size", [8, 24])
def test_fp8_equals_what_transformers_dequantises(folder, model, size):
    quantise(folder, model, fp8_blocks(size), **FP8, weight_block_size=[size, size])
    close(ours(folder), theirs(folder))


def test_only_the_first_layers_of_a_quantised_model(folder, model):
    quantise(folder, model, fp8_blocks(16), **FP8, weight_block_size=[16, 16])
    whole, part = lm.load(folder).model, lm.load(folder, layers=1).model
    np.testing.assert_array_equal(part.blocks.q, whole.blocks.q[:1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": name}, f"quantised by {name}, which is not read")
        for name in ("gptq", "awq", "aqlm", "hqq", "eetq", "quanto", "torchao", "mxfp4", "bitnet", "vptq", "higgs", "x")
    ]
    + [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by bitsandbytes in 4 bits"),
        ({"load_in_4bit": True}, "quantised by bitsandbytes in 4 bits"),
        ({"bits": 4}, "quantised by unknown"),
        (COMPRESSED | {"format": "pack-quantized"}, "in the format pack-quantized"),
        (COMPRESSED | {"config_groups": {"a": {"weights": {"num_bits": 4}}}}, "in other than 8 bits"),
        (COMPRESSED | {"config_groups": {"a": {"format": "nvfp4-pack-quantized"}}}, "in the format nvfp4"),
        (COMPRESSED | {"transform_config": {"a": 1}}, "with transforms or sparse storage"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "with transforms or sparse storage"),
        (COMPRESSED | {"config_groups": [1]}, "config_groups is not an object"),
        (FP8 | {"weight_block_size": "128"}, "a block of weights is 128, expected two whole numbers"),
        (FP8 | {"weight_block_size": [0, 128]}, "expected two whole numbers"),
        ([1], "quantization_config is .*expected an object"),
    ],
)
def test_other_quantisations_are_refused_by_name(folder, config, message):
    settings(folder, quantization_config=config)
    with pytest.raises(UserError, match=message):
        lm.load(folder)


def companion(suffix, value=None):
    def change(found):
        name = "model.layers.0.self_attn.q_proj"
        found[f"{name}.{suffix}"] = torch.zeros(3) if value is None else value

    return change


def packed(**parts):
    def change(found):
        name = "model.layers.0.mlp.up_proj"
        del found[f"{name}.weight"]
        found.update({f"{name}.{suffix}": part for suffix, part in parts.items()})

    return change


def typed(dtype, scales=None):
    def change(found):
        name = "model.layers.1.mlp.down_proj.weight"
        found[name] = torch.ones(found[name].shape).to(dtype)
        if scales is not None:
            found[name.replace("weight", scales[0])] = scales[1]

    return change


INTS = torch.zeros(3, 3, dtype=torch.int32)
MORE = torch.ones(3, 3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (packed(qweight=INTS, qzeros=MORE, scales=torch.ones(3)), "quantised by GPTQ or AWQ"),
        (packed(W_q=INTS), "quantised by HQQ"),
        (packed(codes=INTS, codebooks=torch.ones(3)), "quantised by AQLM"),
        (packed(weight_packed=INTS, weight_scale=torch.ones(3)), "packed weights of compressed-tensors"),
        (packed(weight_blocks=INTS, weight_scales=torch.ones(3)), "quantised by MXFP4"),
        (companion("weight.quant_state.bitsandbytes__nf4"), "quantised by bitsandbytes in 4 bits"),
        (companion("weight.absmax"), "quantised by bitsandbytes in 4 bits"),
        (companion("weight._data"), "quantised by quanto"),
        (companion("weight_scales"), "quantised by EETQ"),
        (companion("weight_scale_2"), "belongs to quantised weights"),
        (companion("weight_scale", torch.ones(48, 1)), "weight_scale belongs to quantised weights"),  # beside floats
        (companion("SCB", torch.ones(48)), "SCB belongs to weights quantised by bitsandbytes in 8 bits"),
        (typed(torch.int8), "holds I8 numbers and has no scales"),
        (typed(torch.float8_e4m3fn), "holds F8_E4M3 numbers and has no scales"),
        (typed(torch.uint8), "holds U8 numbers, expected a float type"),
        (typed(torch.int32), "holds I32 numbers, expected a float type"),
        (typed(torch.bool), "holds BOOL numbers, expected a float type"),
        (typed(torch.complex64), "holds C64 numbers, expected a float type"),
        (
            typed(torch.int8, ("weight_scale", torch.ones(48, 1))),
            "holds I8 numbers beside weight_scale, a quantisation that is not read",
        ),
        (typed(torch.int8, ("SCB", torch.ones(47))), "which do not fit it"),
        (typed(torch.float8_e4m3fn, ("weight_scale", torch.ones(5))), "which do not fit it"),
        (typed(torch.float8_e4m3fn, ("weight_scale", torch.ones(1, 96))), "which do not fit it"),
        (typed(torch.float8_e4m3fn, ("weight_scale_inv", torch.ones(3, 6))), "which do not fit it"),
        (typed(torch.float8_e4m3fn, ("weight_scale", torch.ones(48, 0))), "which do not fit it"),
        (typed(torch.float8_e4m3fn, ("weight_scale", torch.ones(48, 1, dtype=torch.int32))), "which do not fit it"),
        (typed(torch.float8_e4m3fn, ("weight_scale", torch.full((48, 1), torch.nan))), "not finite"),
        (typed(torch.float8_e4m3fn, ("SCB", torch.ones(48))), "beside SCB, a quantisation that is not read"),
    ],
)
def test_companions_tell_what_config_json_does_not(folder, change, message):
    found = tensors(folder)
    change(found)
    store(folder, found)
    with pytest.raises(UserError, match=message):
        lm.load(folder)


def test_a_layout_of_bitsandbytes_other_than_rows_is_refused(folder, model):
    quantise(folder, model, lambda v: (int8_rows(v)[0] | {"weight_format": torch.tensor(2, dtype=torch.uint8)}, v))
    with pytest.raises(UserError, match="another layout than rows"):
        lm.load(folder)


def test_blocks_that_config_json_does_not_name_must_fit(folder, model):
    quantise(folder, model, fp8_blocks(16), **FP8, weight_block_size=[32, 32])
    with pytest.raises(UserError, match=r"do not fit it with blocks of \(32, 32\)"):
        lm.load(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float_types_are_exact(folder, model, dtype):
    found = {name: value.to(dtype) for name, value in tensors(folder).items()}
    store(folder, found)
    loaded = lm.load(folder).model
    np.testing.assert_array_equal(loaded.embedding, found["model.embed_tokens.weight"].float().numpy())
    np.testing.assert_array_equal(loaded.blocks.up[1], found["model.layers.1.mlp.up_proj.weight"].float().numpy())


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, torch.float32), (np.inf, torch.bfloat16), (1e300, torch.float64)]
)
def test_numbers_that_are_not_finite_are_named(folder, value, dtype):
    found = tensors(folder)
    name = "model.layers.1.mlp.gate_proj.weight"
    found[name] = found[name].to(dtype)
    found[name][3, 5] = value
    store(folder, found)
    with pytest.raises(UserError, match=f"{name} in .* not finite numbers of type float32"):
        lm.load(folder)
    assert lm.load(folder, layers=1).model.layers == 1, "what is not read is not looked at"
