import re
from pathlib import Path

import numpy as np
import pytest
from foreign import EMBED, FEATURES, agrees, inputs, normal, top_k

import jhsae
from jhsae.errors import UserError
from jhsae.interop import imported

WHERE = {"source": {"format": "test", "path": "there"}, "reads": {"model": None, "layer": None}}


def leaves() -> dict[str, np.ndarray]:
    return {
        "W_enc": normal(FEATURES, EMBED, seed=1),
        "W_dec": normal(FEATURES, EMBED, seed=2),
        "b_enc": normal(FEATURES, seed=3),
        "b_dec": normal(EMBED, seed=4),
    }


def flat(sparsifier: dict, **more: object) -> dict:
    return imported.flat_slot(FEATURES, EMBED, sparsifier, **more)


def test_weights_land_in_their_places_and_are_saved(tmp_path: Path):
    w = leaves()
    codes = top_k((inputs() - w["b_dec"]) @ w["W_enc"].T + w["b_enc"], 5)
    agrees(
        imported.assemble(flat(imported.top_k(5)), w, WHERE, "f"),
        codes,
        codes @ w["W_dec"] + w["b_dec"],
        tmp_path / "a",
    )


def test_a_normaliser_comes_along(tmp_path: Path):
    w, x = leaves(), inputs()
    mean, std = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
    codes = np.maximum((x - mean) / (std + 1e-5) @ w["W_enc"].T + w["b_enc"], 0)
    slot = flat(imported.RELU, apply_b_dec_to_input=False)
    read = imported.assemble(slot, w, WHERE, "f", normalize={"_target_": "jhsae.data.LayerNorm"})
    agrees(read, codes, (codes @ w["W_dec"] + w["b_dec"]) * std + mean, tmp_path / "a")


def test_gated_slot(tmp_path: Path):
    w = leaves() | {name: normal(FEATURES, seed=s) for s, name in enumerate(("b_gate", "r_mag", "b_mag"), 10)}
    del w["b_enc"]
    shared = (inputs() - w["b_dec"]) @ w["W_enc"].T
    codes = (shared + w["b_gate"] > 0) * np.maximum(shared * np.exp(w["r_mag"]) + w["b_mag"], 0)
    read = imported.assemble(imported.gated_slot(FEATURES, EMBED), w, WHERE, "f")
    agrees(read, codes, codes @ w["W_dec"] + w["b_dec"], tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": normal(EMBED, FEATURES)}, f"f: 'W_dec' is ({EMBED}, {FEATURES}), expected ({FEATURES}, {EMBED})"),
        ({"threshold": normal(FEATURES)}, "b_dec, threshold, expected W_enc"),
    ],
)
def test_parameters_that_do_not_fit(change: dict[str, np.ndarray], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        imported.assemble(flat(imported.RELU), leaves() | change, WHERE, "f")


def test_a_missing_parameter():
    with pytest.raises(UserError, match=r"got the parameters W_enc, W_dec, b_enc, b_dec, expected .*threshold"):
        imported.assemble(flat(imported.JUMP_RELU), leaves(), WHERE, "f")


def test_more_active_features_than_there_are():
    with pytest.raises(UserError, match=f"k is {FEATURES + 1} but there are {FEATURES} features"):
        imported.assemble(flat(imported.top_k(FEATURES + 1)), leaves(), WHERE, "f")


def test_an_existing_folder_is_not_overwritten(tmp_path: Path):
    read = imported.assemble(flat(imported.RELU), leaves(), WHERE, "f")
    imported.save(read, tmp_path / "a")
    with pytest.raises(UserError, match="never overwritten"):
        imported.save(read, tmp_path / "a")
    assert jhsae.load_sae(tmp_path / "a")[2]["reads"] == {"model": None, "layer": None}
