import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import EMBED, FEATURES, agrees, inputs, normal, top_k
from safetensors.numpy import save_file

from jhsae.errors import UserError
from jhsae.interop import openai

K = 6
TOP_K = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}


def weights() -> dict[str, np.ndarray]:
    return {
        "pre_bias": normal(EMBED, seed=1),
        "latent_bias": normal(FEATURES, seed=2),
        "encoder.weight": normal(FEATURES, EMBED, seed=3),
        "decoder.weight": normal(EMBED, FEATURES, seed=4),
        "stats_last_nonzero": np.arange(FEATURES),
        "latents_activation_frequency": normal(FEATURES, seed=5),
        "latents_mean_square": normal(FEATURES, seed=6),
    }


def oracle(k: int | None) -> tuple[np.ndarray, np.ndarray]:
    w, x = weights(), inputs()
    mean, std = 0.0, 1.0
    if k is not None:  # TopK comes with layer-normed inputs
        mean, std = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
        x = (x - mean) / (std + 1e-5)
    pre = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    codes = np.maximum(pre, 0) if k is None else top_k(pre, k)
    return codes, (codes @ w["decoder.weight"].T + w["pre_bias"]) * std + mean


def pickled(file: Path, **more: Any) -> Path:
    torch = pytest.importorskip("torch")
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = weights() | more
    torch.save({k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in entries.items()}, file)
    return file


def twin(file: Path, metadata: dict[str, str] | None, **more: np.ndarray) -> Path:
    save_file(weights() | more, file, metadata)
    return file


@pytest.mark.parametrize(
    ("activation", "k"),
    [
        (TOP_K, K),
        (TOP_K | {"activation.k": K, "activation.postact_fn": "ReLU"}, K),
        ({"activation": "ReLU"}, None),
        ({"activation": "ReLU", "activation_state_dict": {}}, None),
        ({}, None),
    ],
)
def test_codes_and_reconstructions(tmp_path: Path, activation: dict, k: int | None):
    read = openai.read(pickled(tmp_path / "8.pt", **activation), unpickle=True)
    assert read.about["source"]["config"] == {"activation": activation.get("activation", "ReLU"), "k": k}
    agrees(read, *oracle(k), tmp_path / "a")


@pytest.mark.parametrize(("metadata", "k"), [({"activation": "TopK", "k": str(K)}, K), ({"activation": "ReLU"}, None)])
def test_a_safetensors_twin_needs_no_flag(tmp_path: Path, metadata: dict[str, str], k: int | None):
    agrees(openai.read(twin(tmp_path / "8.safetensors", metadata)), *oracle(k), tmp_path / "a")


def test_a_pickle_is_refused_without_the_flag(tmp_path: Path):
    with pytest.raises(UserError, match=r"8\.pt is a pickle, which can run code .* write unpickle=True"):
        openai.read(pickled(tmp_path / "8.pt", **TOP_K))


@pytest.mark.parametrize(
    ("place", "reads"),
    [
        ("gpt2-small/resid_post_mlp_v5_32k/autoencoders", ("openai-community/gpt2", 9)),
        ("gpt2-small/resid_delta_mlp_v5_32k/autoencoders", (None, None)),
        ("elsewhere", (None, None)),
    ],
)
def test_what_the_released_paths_say(tmp_path: Path, place: str, reads: tuple):
    read = openai.read(pickled(tmp_path / place / "8.pt", **TOP_K), unpickle=True)
    assert (read.about["reads"]["model"], read.about["reads"]["layer"]) == reads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "Topk"}, "8.pt: unknown activation 'Topk'; did you mean 'TopK'?"),
        ({"activation": "Identity"}, "unknown activation 'Identity'"),
        ({"activation": 3}, "unknown activation 3"),
        ({"activation": "TopK"}, "8.pt: no key 'k', expected int"),
        (TOP_K | {"activation_state_dict": None}, "'activation_state_dict' is None, expected k and postact_fn of TopK"),
        (TOP_K | {"activation_state_dict": {"k": "6"}}, "'k' is '6', expected int"),
        (TOP_K | {"activation_state_dict": {"k": 6, "postact_fn": "Identity"}}, "postact_fn is 'Identity' after TopK"),
        (TOP_K | {"activation_state_dict": {"k": FEATURES + 1}}, f"k is {FEATURES + 1} but there are {FEATURES}"),
        ({"decoder.weight": normal(FEATURES, EMBED)}, f"'decoder.weight' has shape [{FEATURES}, {EMBED}], expected"),
        ({"decoder.linear.weight": normal(FEATURES, EMBED)}, "unknown tensor 'decoder.linear.weight'"),
        ({"pre_bias": "zero"}, f"'pre_bias' is of type str, expected a tensor of shape [{EMBED}]"),
    ],
)
def test_state_dicts_that_are_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        openai.read(pickled(tmp_path / "8.pt", **change), unpickle=True)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no 'activation' in the metadata of its header, expected 'ReLU' or 'TopK' (with 'k')"),
        ({"activation": "TopK"}, "no key 'k', expected int"),
        ({"activation": "TopK", "k": "many"}, "'k' in the metadata is 'many', expected a number such as '32'"),
    ],
)
def test_twins_that_are_refused(tmp_path: Path, metadata: dict | None, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        openai.read(twin(tmp_path / "8.safetensors", metadata))


@pytest.mark.parametrize(
    ("name", "read"), [("8.pt", lambda f: openai.read(f, unpickle=True)), ("8.safetensors", openai.read)]
)
def test_a_missing_file(tmp_path: Path, name: str, read: Callable):
    with pytest.raises(UserError, match="no file"):
        read(tmp_path / name)
