import json
import re
from pathlib import Path

import numpy as np
import pytest
from foreign import EMBED, FEATURES, agrees, inputs, normal
from safetensors.numpy import save_file

from jhsae.errors import UserError
from jhsae.interop import gemma_scope

CONFIG = {
    "architecture": "jump_relu",
    "model_name": "gemma-v3-1b-pt",
    "hf_hook_point_in": "model.layers.12.output",
    "hf_hook_point_out": "model.layers.12.output",
    "affine_connection": False,
}


def params(upper: bool = True) -> dict[str, np.ndarray]:
    W = "W" if upper else "w"
    return {
        f"{W}_enc": normal(EMBED, FEATURES, seed=1),
        "b_enc": normal(FEATURES, seed=2),
        f"{W}_dec": normal(FEATURES, EMBED, seed=3),
        "b_dec": normal(EMBED, seed=4),
        "threshold": normal(FEATURES, seed=5) + np.float32(0.3),  # some below 0
    }


def oracle() -> tuple[np.ndarray, np.ndarray]:
    p = params()
    pre = inputs() @ p["W_enc"] + p["b_enc"]
    codes = (pre > p["threshold"]) * np.maximum(pre, 0)
    return codes, codes @ p["W_dec"] + p["b_dec"]


def first(folder: Path, **change: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **params() | change)
    return folder


def second(folder: Path, config: dict | None = None, **change: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    save_file(params(upper=False) | change, folder / "params.safetensors")
    return folder


def test_gemma_scope_codes_and_reconstructions(tmp_path: Path):
    assert (params()["threshold"] < 0).any()
    hub = tmp_path / "models--google--gemma-scope-2b-pt-res" / "snapshots" / "123"
    read = gemma_scope.read(first(hub / "layer_20" / "width_16k" / "average_l0_71"))
    assert read.about["reads"] == {"model": "google/gemma-2-2b", "layer": 21}
    assert read.about["source"]["format"] == "gemma_scope"
    agrees(read, *oracle(), tmp_path / "a")


def test_gemma_scope_2_codes_and_reconstructions(tmp_path: Path):
    read = gemma_scope.read(second(tmp_path / "resid_post" / "layer_12_width_16k_l0_small") / "params.safetensors")
    assert read.about["reads"] == {"model": "google/gemma-3-1b-pt", "layer": 13}
    assert read.about["source"]["config"] == CONFIG
    agrees(read, *oracle(), tmp_path / "a")


def test_half_precision_arrays(tmp_path: Path):
    halves = {key: value.astype(np.float16) for key, value in params().items()}
    sae = gemma_scope.read(first(tmp_path / "sae", **halves)).sae
    np.testing.assert_array_equal(sae.W_dec, halves["W_dec"].astype(np.float32))


@pytest.mark.parametrize(
    ("folder", "reads"),
    [
        ("gemma-scope-9b-it-res/layer_9/width_16k/average_l0_88", ("google/gemma-2-9b-it", 10)),
        ("gemma-scope-2b-pt-mlp/layer_9/width_16k/average_l0_88", ("google/gemma-2-2b", None)),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", ("google/gemma-2-2b", None)),
        ("layer_9/width_16k/average_l0_88", (None, None)),
    ],
)
def test_what_the_folders_say(tmp_path: Path, folder: str, reads: tuple):
    assert tuple(gemma_scope.read(first(tmp_path / folder)).about["reads"].values()) == reads


@pytest.mark.parametrize(
    ("point", "layer"), [("model.layers.0.output", 1), ("model.layers.5.self_attn.o_proj.input", None)]
)
def test_what_the_hook_point_says(tmp_path: Path, point: str, layer: int | None):
    config = CONFIG | {"hf_hook_point_in": point, "hf_hook_point_out": None}
    assert gemma_scope.read(second(tmp_path / "sae", config)).about["reads"]["layer"] == layer


def test_without_a_config_the_folder_must_say_that_it_is_an_sae(tmp_path: Path):
    known, unknown = second(tmp_path / "resid_post" / "layer_1_width_16k"), second(tmp_path / "layer_1_width_16k")
    for folder in (known, unknown):
        (folder / "config.json").unlink()
    assert gemma_scope.read(known).about["reads"] == {"model": None, "layer": None}
    with pytest.raises(UserError, match=r"no file .*config\.json"):
        gemma_scope.read(unknown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "topk"}, "config.json: unknown architecture 'topk'; known: jump_relu"),
        ({"architecture": 1}, "config.json: 'architecture' is 1, expected str"),
        ({"affine_connection": 3}, "config.json: affine_connection is 3, expected true or false"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        gemma_scope.read(second(tmp_path / "sae", CONFIG | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"affine_skip_connection": normal(EMBED, EMBED)},
            "'affine_skip_connection' makes this a transcoder, but neither config.json nor the folders say so",
        ),
        ({"w_dec": normal(FEATURES, 3, EMBED)}, f"'w_dec' has shape [{FEATURES}, 3, {EMBED}]"),
        ({"threshold": normal(1)}, f"'threshold' has shape [1], expected [{FEATURES}]"),
        ({"extra": normal(1)}, "unknown tensor 'extra'"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, change: dict[str, np.ndarray], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        gemma_scope.read(second(tmp_path / "sae", **change))


@pytest.mark.parametrize("name", ["crosscoder/layer_1_2/width_16k", "clt_all/layer_1/width_16k"])
def test_crosscoders_and_cross_layer_transcoders_are_refused_by_their_folders(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="only SAEs and transcoders can be read"):
        gemma_scope.read(first(tmp_path / name))


def test_a_transcoder_of_gemma_2(tmp_path: Path):
    hub = tmp_path / "models--google--gemma-scope-2b-pt-transcoders" / "snapshots" / "123"
    read = gemma_scope.read(first(hub / "layer_20" / "width_16k" / "average_l0_71"))
    where = {"model": "google/gemma-2-2b", "layer": 20}
    assert (read.about["reads"], read.about["writes"]) == (
        where | {"hook": "mlp_normalized"},
        where | {"hook": "mlp_out"},
    )
    agrees(read, *oracle(), tmp_path / "a")


@pytest.mark.parametrize("block", ["12", "13"])
def test_a_transcoder_of_gemma_3_with_an_affine_skip_connection(tmp_path: Path, block: str):
    places = {
        "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
        "hf_hook_point_out": f"model.layers.{block}.post_feedforward_layernorm.output",
    }
    skip = normal(EMBED, EMBED, seed=9)
    folder = second(tmp_path / "t", CONFIG | places | {"affine_connection": True}, affine_skip_connection=skip)
    read = gemma_scope.read(folder)
    codes, written = oracle()
    agrees(read, codes, written + inputs() @ skip, tmp_path / "a")
    assert read.about["reads"]["layer"] == (12 if block == "12" else None)
    assert ("writes" in read.about) == (block == "12")


def test_an_npz_with_objects_is_never_unpickled(tmp_path: Path):
    folder = first(tmp_path / "sae", b_dec=np.array([{"a": 1}] * EMBED, dtype=object))
    with pytest.raises(UserError, match=r"params\.npz is not an npz file of plain arrays"):
        gemma_scope.read(folder)


@pytest.mark.parametrize("content", [b"", b"something else", b"PK\x03\x04", b"\x80\x04."])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes):
    (tmp_path / "params.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"params\.npz is not an npz file of plain arrays"):
        gemma_scope.read(tmp_path)


def test_an_array_alone_and_a_damaged_archive(tmp_path: Path):
    file = tmp_path / "params.npz"
    with file.open("wb") as opened:
        np.save(opened, params()["W_enc"])
    with pytest.raises(UserError, match="is not an npz file of plain arrays"):
        gemma_scope.read(file)
    np.savez_compressed(file, **params())
    content = bytearray(file.read_bytes())
    content[100:600] = bytes(500)
    file.write_bytes(content)
    with pytest.raises(UserError, match="is not an npz file of plain arrays"):
        gemma_scope.read(file)


def test_nothing_there_and_a_missing_array(tmp_path: Path):
    with pytest.raises(UserError, match=r"no params\.npz or params\.safetensors"):
        gemma_scope.read(tmp_path)
    np.savez(tmp_path / "params.npz", **{key: value for key, value in params().items() if key != "threshold"})
    with pytest.raises(UserError, match="no tensor 'threshold'"):
        gemma_scope.read(tmp_path / "params.npz")
