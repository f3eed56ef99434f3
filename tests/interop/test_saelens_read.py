"""Reading SAELens directories: what is refused, by file and key, and what may be absent. Needs no SAELens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sealed import sealed
from small_saes import ABOUT, EMBED, change, configure, flat, jump, rows, run, same

from jhsae.data import Identity, Scale
from jhsae.errors import UserError
from jhsae.files.checksums import NAME
from jhsae.interop import saelens
from jhsae.sparsify import TopK

DATA = rows()


BAD_TENSORS = {
    "missing": (lambda t: t.pop("b_enc"), r"no tensor 'b_enc', expected one of shape \[40\]"),
    "transposed": (lambda t: t.update(W_enc=t["W_dec"]), r"'W_enc' has shape \[40, 12\], expected \[12, 40\]"),
    "short": (lambda t: t.update(threshold=t["threshold"][1:]), r"'threshold' has shape \[39\], expected \[40\]"),
    "unexpected": (lambda t: t.update(W_skip=t["W_dec"]), "unknown tensor 'W_skip'"),
    "nan": (lambda t: t.update(b_dec=t["b_dec"] * np.nan), "'b_dec' holds NaN"),
}
BAD_KEYS = {
    "architecture": (
        {"architecture": "jumprelo"},
        "architecture is 'jumprelo', expected one of standard, .*did you mean 'jumprelu'",
    ),
    "other_architecture": (
        {"architecture": "temporal"},
        "architecture is 'temporal', expected one of standard, topk, jumprelu",
    ),
    "no_architecture": ({"architecture": None}, "no key 'architecture'"),
    "size": ({"d_sae": 41}, r"'W_enc' has shape \[12, 40\], expected \[12, 41\]"),
    "no_size": ({"d_in": None}, "no key 'd_in', expected int"),
    "no_k": ({"architecture": "topk"}, "no key 'k'"),
    "hook_z": ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
    "normalize": ({"normalize_activations": "layernorm"}, "unknown normalize_activations.*'layer_norm'"),
    "newer": ({"metadata": {"sae_lens_version": "7.0.0"}}, r"sae_lens_version is '7.0.0', expected 6.x"),
    "older": ({"metadata": {"sae_lens_version": "5.9.1"}}, r"'5.9.1', expected 6.x.*save it again"),
    "legacy": ({"metadata": {"sae_lens_version": None}}, "no metadata.sae_lens_version.*SAELens 5 or older"),
    "no_version": ({"metadata": {"sae_lens_version": "main"}}, "sae_lens_version is 'main'"),
}


@pytest.fixture
def written(tmp_path) -> Path:
    """A directory as SAELens itself writes it: without checksums."""
    saelens.write(tmp_path / "out", jump(), Identity(), ABOUT)
    (tmp_path / "out" / NAME).unlink()
    return tmp_path / "out"


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_bad_tensor_is_refused_with_file_and_key(written, case):
    edit, words = BAD_TENSORS[case]
    change(written, edit)
    with pytest.raises(UserError, match=rf"sae_weights.safetensors: {words}"):
        saelens.read(written)


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_bad_config_is_refused_with_file_and_key(written, case):
    changes, words = BAD_KEYS[case]
    configure(written, **changes)
    with pytest.raises(UserError, match=rf"(cfg.json|safetensors): .*{words}"):
        saelens.read(written)


def test_a_k_above_the_number_of_features_is_refused(tmp_path):
    saelens.write(tmp_path / "out", flat(TopK(5)), Identity(), ABOUT)
    configure(tmp_path / "out", k=41)
    sealed(tmp_path / "out")
    with pytest.raises(UserError, match="k is 41 but there are 40 features"):
        saelens.read(tmp_path / "out")


def test_a_missing_file_a_pickle_and_bad_json_are_refused(written):
    weights = written / "sae_weights.safetensors"
    weights.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(UserError, match="pickle or zip"):
        saelens.read(written)
    weights.unlink()
    with pytest.raises(UserError, match=r"no file .*sae_weights.safetensors"):
        saelens.read(written)
    (written / "cfg.json").write_text("{")
    with pytest.raises(UserError, match=r"cfg.json cannot be read as JSON"):
        saelens.read(written)
    shutil.rmtree(written)
    with pytest.raises(UserError, match=r"no file .*cfg.json"):
        saelens.read(written)


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        (None, "wants statistics that SAELens keeps in activation_scaler.json"),
        ({"has_whitening": False}, "no key 'scaling_factor'"),
        ({"scaling_factor": None}, "'scaling_factor' is None, expected float"),
        ({"scaling_factor": 0}, "scaling_factor is 0.0, expected a number above 0"),
    ],
)
def test_a_scale_without_its_number_is_refused(written, statistics, words):
    configure(written, normalize_activations="expected_average_only_in")
    if statistics is not None:
        (written / "activation_scaler.json").write_text(json.dumps(statistics))
    with pytest.raises(UserError, match=words):
        saelens.read(written)


def test_a_whitening_of_another_size_is_refused(written):
    configure(written, normalize_activations="covariance_whitening")
    square = np.eye(EMBED + 1)
    whitening = {"mean": np.zeros(EMBED), "matrix": square, "inverse_matrix": square}
    save_file(whitening, written / "activation_whitening.safetensors")
    with pytest.raises(UserError, match=r"activation_whitening.safetensors: 'matrix' has shape \[13, 13\]"):
        saelens.read(written)


def test_keys_that_saelens_has_defaults_for_may_be_absent(written):
    configure(written, apply_b_dec_to_input=None, normalize_activations=None, reshape_activations=None)
    read = saelens.read(written)
    same(run(read.sae, read.normalizer, DATA), run(jump(), Identity(), DATA))


def test_a_scale_read_is_the_one_that_was_written(written):
    configure(written, normalize_activations="expected_average_only_in")
    (written / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    read = saelens.read(written)
    assert isinstance(read.normalizer, Scale) and read.normalizer.scale == 4
    assert read.normalize == {"_target_": "jhsae.data.Scale"}


@pytest.mark.parametrize(
    ("named", "hook", "reads"),
    [
        ("gpt2-small", "blocks.8.hook_resid_pre", ("openai-community/gpt2", 8)),
        ("gpt2", "transformer.h.7", ("gpt2", 8)),
        ("gemma-2-2b", "blocks.20.hook_resid_post", ("google/gemma-2-2b", 21)),
        ("gemma-2-9b-it", "blocks.20.hook_resid_post", ("google/gemma-2-9b-it", 21)),
        ("gemma-3-270m", "model.layers.5", ("google/gemma-3-270m", 6)),
        ("google/gemma-3-4b-pt", "model.language_model.layers.9", ("google/gemma-3-4b-pt", 10)),
        ("pythia-70m-deduped", "gpt_neox.layers.3", ("EleutherAI/pythia-70m-deduped", 4)),
        ("models/gemma-2-2b", "blocks.3.hook_mlp_out", ("models/gemma-2-2b", None)),
        ("gemma-2-2b and more", "transformer.h.7.mlp", ("gemma-2-2b and more", None)),
    ],
)
def test_models_and_layers_by_the_names_of_other_libraries(written, named, hook, reads):
    configure(written, metadata={"model_name": named, "hook_name": hook, "hf_hook_name": None, "jhsae": None})
    about = saelens.read(written).about["reads"]
    assert (about["model"], about["layer"]) == reads


def test_the_model_of_our_own_export_keeps_its_name(tmp_path):
    about = ABOUT | {"reads": {"model": "gemma-2-2b", "layer": 3}}
    saelens.write(tmp_path / "out", jump(), Identity(), about)
    assert saelens.read(tmp_path / "out").about["reads"] == {"model": "gemma-2-2b", "layer": 3}
