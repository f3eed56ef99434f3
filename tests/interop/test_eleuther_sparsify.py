import json
import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from foreign import EMBED, FEATURES, agrees, inputs, normal, top_k
from safetensors.numpy import load_file, save_file

from jhsae.errors import UserError
from jhsae.interop import sparsify

K = 6
CFG = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": FEATURES,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": EMBED,
}


def weights() -> dict[str, np.ndarray]:
    return {
        "encoder.weight": normal(FEATURES, EMBED, seed=1),
        "encoder.bias": normal(FEATURES, seed=2),
        "W_dec": normal(FEATURES, EMBED, seed=3),
        "b_dec": normal(EMBED, seed=4),
    }


def written(folder: Path, cfg: dict | None = None, tensors: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(cfg or CFG))
    save_file(tensors or weights(), folder / "sae.safetensors")
    return folder


def oracle(w: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    codes = top_k((inputs() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], K)
    return codes, codes @ w["W_dec"] + w["b_dec"]


def test_codes_and_reconstructions(tmp_path: Path):
    folder = written(tmp_path / "run" / "layers.5")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    read = sparsify.read(folder)
    assert read.about["reads"] == {"model": "EleutherAI/pythia-160m", "layer": 6}
    assert read.about["source"] == {"format": "sparsify", "path": str(folder), "config": CFG}
    agrees(read, *oracle(weights()), tmp_path / "a")


def test_bfloat16_weights(tmp_path: Path):
    stored = {key: value.astype(ml_dtypes.bfloat16) for key, value in weights().items()}
    rounded = {key: value.astype(np.float32) for key, value in stored.items()}
    agrees(sparsify.read(written(tmp_path / "layers.0", tensors=stored)), *oracle(rounded), tmp_path / "a")


def test_latents_by_expansion_and_configs_of_old_versions(tmp_path: Path):
    old = {"expansion_factor": 3, "normalize_decoder": True, "num_latents": 0, "k": K, "signed": False, "d_in": EMBED}
    w = {key: value[: 3 * EMBED] if len(value) == FEATURES else value for key, value in weights().items()}
    read = sparsify.read(written(tmp_path / "layers.11", old, w))
    assert read.sae.features == 3 * EMBED
    agrees(read, *oracle(w), tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "layer"),
    [("layers.3/seed1", 4), ("gpt_neox.layers.0", 1), ("h.11", 12), ("layers.3.mlp", None), ("embed_tokens", None)],
)
def test_what_the_hookpoint_says_of_the_layer(tmp_path: Path, name: str, layer: int | None):
    assert sparsify.read(written(tmp_path / name)).about["reads"] == {"model": None, "layer": layer}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "groupmax"}, "cfg.json: activation is 'groupmax', expected 'topk'"),
        ({"transcode": True}, "cfg.json: transcode is True, expected false"),
        ({"skip_connection": True}, "cfg.json: skip_connection is True, expected false"),
        ({"signed": True}, "cfg.json: signed is True, expected false"),
        ({"k": "6"}, "cfg.json: 'k' is '6', expected int"),
        ({"k": FEATURES + 1}, f"k is {FEATURES + 1} but there are {FEATURES} features"),
        ({"d_in": EMBED + 1}, f"'encoder.weight' has shape [{FEATURES}, {EMBED}], expected [{FEATURES}, {EMBED + 1}]"),
        ({"num_latents": 0}, f"expected [{32 * EMBED}, {EMBED}]"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        sparsify.read(written(tmp_path / "layers.0", CFG | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"W_skip": normal(EMBED, EMBED)}, "'W_skip' makes this a skip transcoder"),
        (lambda w: w | {"W_other": normal(2)}, "unknown tensor 'W_other'"),
        (lambda w: w | {"W_dec": normal(EMBED, FEATURES)}, f"'W_dec' has shape [{EMBED}, {FEATURES}]"),
        (lambda w: {key: w[key] for key in w if key != "b_dec"}, "no tensor 'b_dec'"),
        (lambda w: w | {"b_dec": np.full(EMBED, np.nan)}, "'b_dec' holds NaN or infinity"),
    ],
)
def test_weights_that_are_refused(tmp_path: Path, change: Callable, message: str):
    folder = written(tmp_path / "layers.0", tensors=change(weights()))
    with pytest.raises(UserError, match=re.escape(message)):
        sparsify.read(folder)


def test_files_that_are_missing_or_something_else(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        sparsify.read(tmp_path / "layers.0")
    folder = written(tmp_path / "layers.1")
    (folder / "sae.safetensors").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="is a pickle or zip archive"):
        sparsify.read(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(UserError, match=r"no file .*cfg\.json"):
        sparsify.read(folder)


def test_the_oracle_is_of_the_stored_weights(tmp_path: Path):
    stored = load_file(written(tmp_path / "layers.0") / "sae.safetensors")
    assert all(np.array_equal(stored[key], value) for key, value in weights().items())
