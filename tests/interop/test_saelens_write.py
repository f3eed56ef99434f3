"""What a SAELens directory of ours holds, and what is refused because SAELens has no form for it."""

import json

import equinox as eqx
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_saes import ABOUT, EMBED, FEATURES, fitted, flat, gated, hierarchical, jump

from jhsae.data import AbstractNormalizer, CenteredUnitNorm, Identity, LayerNorm, UnitNorm
from jhsae.errors import UserError
from jhsae.interop import saelens
from jhsae.sae import AbstractSAE
from jhsae.schedule import Constant
from jhsae.sparsify import BinaryGumbelTopK, OffsetTopK, ReLU


def test_the_files_of_a_directory(tmp_path):
    frequency = np.linspace(0, 1, FEATURES, dtype=np.float32)
    about = ABOUT | {"sae": {"sparsifier": {"_target_": "jhsae.sparsify.BatchTopK"}}}
    saelens.write(tmp_path / "out", jump(), Identity(), about, frequency)
    config = json.loads((tmp_path / "out" / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "jumprelu",
        "d_in": EMBED,
        "d_sae": FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    assert metadata == {
        "sae_lens_version": "6.54.12",
        "sae_lens_training_version": None,
        "model_name": "google/gemma-2-2b",
        "hook_name": "blocks.2.hook_resid_post",
        "hf_hook_name": "model.layers.2",
        "training_architecture": "batchtopk",
        "jhsae": {"config_hash": "0123456789ab", "commit": "abcdef", "version": "0.1.0"},
    }
    tensors = load_file(tmp_path / "out" / "sae_weights.safetensors")
    shapes = {"W_enc": (EMBED, FEATURES), "W_dec": (FEATURES, EMBED), "b_enc": (FEATURES,), "b_dec": (EMBED,)}
    assert {k: v.shape for k, v in tensors.items()} == shapes | {"threshold": (FEATURES,)}
    sparsity = load_file(tmp_path / "out" / "sparsity.safetensors")["sparsity"]
    assert sparsity[0] == pytest.approx(-10)
    np.testing.assert_allclose(10 ** sparsity[1:], frequency[1:], rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 7, None])
def test_the_layer_goes_out_and_comes_back(tmp_path, layer):
    saelens.write(tmp_path / "out", flat(ReLU()), Identity(), ABOUT | {"reads": {"model": "m", "layer": layer}})
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    hooks = {0: "blocks.0.hook_resid_pre", 1: "blocks.0.hook_resid_post", 7: "blocks.6.hook_resid_post", None: None}
    assert metadata["hook_name"] == hooks[layer]
    assert saelens.read(tmp_path / "out").about["reads"] == {"model": "m", "layer": layer}


@pytest.mark.parametrize(
    ("sae", "normalizer", "words"),
    [
        (hierarchical(), Identity(), "format=torch"),
        (flat(OffsetTopK(4, 0.1)), Identity(), "no activation like OffsetTopK; write format=folder"),
        (flat(BinaryGumbelTopK(4, Constant(1.0))), Identity(), "no activation like BinaryGumbelTopK"),
        (gated(), fitted(CenteredUnitNorm()), "no normaliser like CenteredUnitNorm.*CenterScale"),
        (gated(), LayerNorm(1e-3), "LayerNorm has eps 0.001"),
        (gated(), UnitNorm(1.0), "UnitNorm has eps 1,"),
    ],
)
def test_what_saelens_has_no_form_for_is_refused_before_anything_is_written(
    tmp_path, sae: AbstractSAE, normalizer: AbstractNormalizer, words
):
    with pytest.raises(UserError, match=words):
        saelens.write(tmp_path / "out", sae, normalizer, ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_below_0_is_refused(tmp_path):
    sae = jump()
    negative = sae.sparsifier.threshold.at[0].set(-0.5)
    with pytest.raises(UserError, match=r"threshold is -0\.5"):
        saelens.write(tmp_path / "out", with_threshold(sae, negative), Identity(), ABOUT)


def with_threshold(sae, threshold):
    return eqx.tree_at(lambda s: s.sparsifier.threshold, sae, threshold)


def test_a_folder_is_never_overwritten_and_a_broken_write_leaves_none(tmp_path):
    saelens.write(tmp_path / "out", gated(), Identity(), ABOUT)
    with pytest.raises(UserError, match="exists already"):
        saelens.write(tmp_path / "out", gated(), Identity(), ABOUT)
    with pytest.raises(TypeError):
        saelens.write(tmp_path / "new", gated(), Identity(), ABOUT | {"commit": object()})
    assert not (tmp_path / "new").exists()
