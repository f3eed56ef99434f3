import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import EMBED, FEATURES, agrees, inputs, normal, top_k
from safetensors.numpy import save_file

from jhsae.errors import UserError
from jhsae.interop import dictionary_learning, unpickle

K = 5
GROUPS = [8, 12, 20]
Tensors = dict[str, np.ndarray]


def linear(**more: np.ndarray) -> Tensors:
    return {
        "encoder.weight": normal(FEATURES, EMBED, seed=1),
        "encoder.bias": normal(FEATURES, seed=2),
        "decoder.weight": normal(EMBED, FEATURES, seed=3),
        **more,
    }


def matrices(**more: np.ndarray) -> Tensors:
    return {
        "W_enc": normal(EMBED, FEATURES, seed=1),
        "b_enc": normal(FEATURES, seed=2),
        "W_dec": normal(FEATURES, EMBED, seed=3),
        "b_dec": normal(EMBED, seed=4),
        **more,
    }


def sparse(threshold: float) -> Tensors:
    return {"k": np.array(K, np.int32), "threshold": np.array(threshold, np.float32)}


def unit_columns(w: Tensors) -> Tensors:
    return w | {"decoder.weight": w["decoder.weight"] / np.linalg.norm(w["decoder.weight"], axis=0)}


def gated() -> Tensors:
    w = linear(**{name: normal(FEATURES, seed=s) for s, name in enumerate(("r_mag", "gate_bias", "mag_bias"), 5)})
    del w["encoder.bias"]
    return w | {"decoder_bias": normal(EMBED, seed=4)}


def relu(pre: np.ndarray) -> np.ndarray:
    return np.maximum(pre, 0)


# What ``encode`` and ``decode`` of each class do, on `inputs()`.


def standard(w: Tensors) -> tuple[np.ndarray, np.ndarray]:
    norms = np.linalg.norm(w["decoder.weight"], axis=0)  # load_dictionary normalises: codes grow by the norms
    codes = relu((inputs() - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]) * norms
    return codes, codes @ (w["decoder.weight"] / norms).T + w["bias"]


def standard_new(w: Tensors) -> tuple[np.ndarray, np.ndarray]:
    codes = relu(inputs() @ w["encoder.weight"].T + w["encoder.bias"])
    return codes, codes @ w["decoder.weight"].T + w["decoder.bias"]


def token_top_k(w: Tensors) -> tuple[np.ndarray, np.ndarray]:
    codes = top_k((inputs() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], K)
    return codes, codes @ w["decoder.weight"].T + w["b_dec"]


def batch_top_k(w: Tensors) -> tuple[np.ndarray, np.ndarray]:
    f = relu((inputs() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    codes = f * (f > w["threshold"])
    return codes, codes @ w["decoder.weight"].T + w["b_dec"]


def matryoshka(w: Tensors) -> tuple[np.ndarray, np.ndarray]:
    f = relu((inputs() - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    codes = f * (f > w["threshold"])
    return codes, codes @ w["W_dec"] + w["b_dec"]


def jump_relu(w: Tensors) -> tuple[np.ndarray, np.ndarray]:
    pre = inputs() @ w["W_enc"] + w["b_enc"]
    codes = relu(pre * (pre > w["threshold"]))
    return codes, codes @ w["W_dec"] + w["b_dec"]


def gated_forward(w: Tensors) -> tuple[np.ndarray, np.ndarray]:
    shared = (inputs() - w["decoder_bias"]) @ w["encoder.weight"].T
    codes = (shared + w["gate_bias"] > 0) * relu(np.exp(w["r_mag"]) * shared + w["mag_bias"])
    return codes, codes @ w["decoder.weight"].T + w["decoder_bias"]


B_DEC = {"b_dec": normal(EMBED, seed=4)}
CASES: dict[str, tuple[str, Tensors, Callable]] = {
    "standard": ("AutoEncoder", linear(bias=normal(EMBED, seed=4)), standard),
    "standard-unit": ("AutoEncoder", unit_columns(linear(bias=normal(EMBED, seed=4))), standard),
    "new": ("AutoEncoderNew", linear(**{"decoder.bias": normal(EMBED, seed=4)}), standard_new),
    "topk": ("AutoEncoderTopK", linear(**B_DEC, **sparse(-1.0)), token_top_k),
    "topk-with-threshold": ("AutoEncoderTopK", linear(**B_DEC, **sparse(0.7)), token_top_k),
    "batchtopk": ("BatchTopKSAE", linear(**B_DEC, **sparse(0.7)), batch_top_k),
    "batchtopk-unset": ("BatchTopKSAE", linear(**B_DEC, **sparse(-1.0)), batch_top_k),
    "matryoshka": ("MatryoshkaBatchTopKSAE", matrices(**sparse(0.7), group_sizes=np.array(GROUPS)), matryoshka),
    "jumprelu": ("JumpReluAutoEncoder", matrices(threshold=np.abs(normal(FEATURES, seed=5))), jump_relu),
    "jumprelu-negative": ("JumpReluAutoEncoder", matrices(threshold=normal(FEATURES, seed=5)), jump_relu),
    "gated": ("GatedAutoEncoder", gated(), gated_forward),
}


def config(name: str, **trainer: Any) -> dict:
    settings = {
        "dict_class": name,
        "activation_dim": EMBED,
        "dict_size": FEATURES,
        "k": K,
        "lm_name": "google/gemma-2-2b",
    }
    return {"trainer": settings | {"layer": 12} | trainer, "buffer": {"io": "out", "ctx_len": 128}}


def folder_of(folder: Path, name: str, tensors: Tensors, **trainer: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(name, **trainer)))
    save_file(tensors, folder / "ae.safetensors")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_codes_and_reconstructions(tmp_path: Path, case: str):
    name, tensors, oracle = CASES[case]
    folder = folder_of(tmp_path / "trainer_0", name, tensors)
    read = dictionary_learning.read(folder)
    assert read.about["reads"] == {"model": "google/gemma-2-2b", "layer": 13}
    assert read.about["source"] == {"format": "dictionary_learning", "path": str(folder), "config": config(name)}
    agrees(read, *oracle(tensors), tmp_path / "a")


@pytest.mark.parametrize("case", CASES)
def test_the_pickle_says_the_same_when_it_may_be_opened(tmp_path: Path, case: str):
    torch = pytest.importorskip("torch")
    name, tensors, oracle = CASES[case]
    folder = folder_of(tmp_path / "trainer_0", name, tensors)
    (folder / "ae.safetensors").unlink()
    torch.save({key: torch.tensor(value) for key, value in tensors.items()}, folder / "ae.pt")
    with pytest.raises(UserError, match=r"ae\.pt is a pickle, which can run code .* write unpickle=True"):
        dictionary_learning.read(folder)
    agrees(dictionary_learning.read(folder, unpickle=True), *oracle(tensors), tmp_path / "a")


def test_a_checkpoint_finds_the_config_above_it(tmp_path: Path):
    name, tensors, oracle = CASES["topk"]
    folder = folder_of(tmp_path / "trainer_0", name, tensors)
    (folder / "checkpoints").mkdir()
    (folder / "ae.safetensors").rename(folder / "checkpoints" / "ae_100.safetensors")
    agrees(dictionary_learning.read(folder / "checkpoints" / "ae_100.safetensors"), *oracle(tensors), tmp_path / "a")


def test_bfloat16_in_a_pickle(tmp_path: Path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.tensor([1.0, 2.5], dtype=torch.bfloat16), "k": torch.tensor(3)}, tmp_path / "ae.pt")
    found = unpickle.state_dict(tmp_path / "ae.pt", True)
    assert found["w"].dtype == np.float32 and found["w"].tolist() == [1.0, 2.5] and found["k"] == 3


@pytest.mark.parametrize(
    ("trainer", "buffer", "layer"),
    [
        ({"submodule_name": "resid_post_layer_12"}, {"io": "out"}, 13),
        ({"submodule_name": "mlp_out_layer_12"}, {"io": "out"}, None),
        ({"submodule_name": None}, {"io": "in"}, 12),
        ({"layer": None}, None, None),
    ],
)
def test_what_it_reads(tmp_path: Path, trainer: dict, buffer: dict | None, layer: int | None):
    folder = folder_of(tmp_path / "trainer_0", *CASES["topk"][:2])
    (folder / "config.json").write_text(json.dumps(config("AutoEncoderTopK", **trainer) | {"buffer": buffer}))
    assert dictionary_learning.read(folder).about["reads"] == {"model": "google/gemma-2-2b", "layer": layer}


def without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda w: {name: value for name, value in w.items() if name != key}


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("topk", without("b_dec"), f"ae.safetensors: no tensor 'b_dec', expected one of shape [{EMBED}]"),
        (
            "topk",
            lambda w: w | {"decoder.weight": normal(FEATURES, EMBED)},
            "'decoder.weight' has shape [40, 12], expected",
        ),
        ("topk", lambda w: w | {"k": np.array(K + 1)}, f"ae.safetensors has k={K + 1}, but"),
        ("topk", lambda w: w | {"W_skip": normal(2)}, "unknown tensor 'W_skip'"),
        ("batchtopk", without("threshold"), "no tensor 'threshold', expected one of shape [] (a scalar)"),
        ("batchtopk", lambda w: w | {"threshold": np.array(np.nan)}, "'threshold' holds NaN or infinity"),
        ("matryoshka", lambda w: w | {"group_sizes": np.array([3, 4])}, "'group_sizes' add up to 7, expected 40"),
        ("jumprelu", lambda w: w | {"threshold": np.array(0.1)}, "'threshold' has shape [] (a scalar), expected [40]"),
        ("gated", without("r_mag"), "no tensor 'r_mag'"),
        ("standard", lambda w: w | {"decoder.weight": 0 * w["decoder.weight"]}, "column 0 of 'decoder.weight' is 0"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, case: str, change: Callable, message: str):
    name, tensors, _ = CASES[case]
    with pytest.raises(UserError, match=re.escape(message)):
        dictionary_learning.read(folder_of(tmp_path / "trainer_0", name, change(tensors)))


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            {"dict_class": "AutoEncoderTopk"},
            "unknown dict_class 'AutoEncoderTopk'; did you mean 'AutoEncoderTopK'?; known: ",
        ),
        ({"dict_class": None}, "'dict_class' is None, expected str"),
        ({"k": 5.0}, "'k' is 5.0, expected int"),
        ({"k": FEATURES + 1}, "belong to two SAEs"),
        ({"dict_size": 7}, "is for features=40, but"),
        ({"activation_dim": 7}, "is for embed=12, but"),
        ({"layer": "12"}, "layer '12', expected a string and an int"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, trainer: dict, message: str):
    folder = folder_of(tmp_path / "trainer_0", "AutoEncoderTopK", CASES["topk"][1], **trainer)
    with pytest.raises(UserError, match=re.escape(message)):
        dictionary_learning.read(folder)


def test_files_that_are_missing(tmp_path: Path):
    with pytest.raises(UserError, match=r"no ae\.safetensors or ae\.pt in"):
        dictionary_learning.read(tmp_path / "trainer_0")
    folder = folder_of(tmp_path / "trainer_1", *CASES["topk"][:2])
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: no key 'trainer', expected dict"):
        dictionary_learning.read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no file .*trainer_1/config\.json"):
        dictionary_learning.read(folder)


class Hostile:
    """An object whose unpickling writes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_hostile_pickle_runs_nothing_even_with_the_flag(tmp_path: Path, by_torch: bool):
    torch = pytest.importorskip("torch")
    mark = tmp_path / "mark"
    folder = folder_of(tmp_path / "trainer_0", *CASES["topk"][:2])
    (folder / "ae.safetensors").unlink()
    hostile = {"b_dec": Hostile(mark)}
    if by_torch:
        torch.save(hostile, folder / "ae.pt")
    else:
        (folder / "ae.pt").write_bytes(pickle.dumps(hostile, protocol=2))
    for flag in (False, True):
        with pytest.raises(UserError, match=r"is a pickle|is not a state dict"):
            dictionary_learning.read(folder, unpickle=flag)
    assert not mark.exists()
    pickle.loads(pickle.dumps(hostile))  # what an ordinary load would have done
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", b"\x80\x02]q\x00."])
def test_a_broken_pickle(tmp_path: Path, content: bytes):
    pytest.importorskip("torch")
    (tmp_path / "ae.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"ae\.pt (is not a state dict|holds a list)"):
        unpickle.state_dict(tmp_path / "ae.pt", True)


def test_without_torch_a_pickle_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "ae.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"needs torch to be read, which is not installed; pip install torch"):
        unpickle.state_dict(tmp_path / "ae.pt", True)
