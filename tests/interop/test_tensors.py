import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jhsae.errors import UserError
from jhsae.files import forms
from jhsae.interop import tensors

VALUES = np.array([[1.0, -2.5, 3.140625], [0.0, 1e-3, 65504.0]], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_reduced_precision_becomes_float32_exactly(tmp_path: Path, dtype: type):
    stored = VALUES.astype(dtype)
    save_file({"a": stored}, tmp_path / "w.safetensors")
    found = tensors.load(tmp_path / "w.safetensors")["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored.astype(np.float32))


def test_other_types_stay_and_take_makes_them_float32(tmp_path: Path):
    save_file({"k": np.array(7), "w": VALUES.astype(np.float64)}, tmp_path / "w.safetensors")
    found = tensors.load(tmp_path / "w.safetensors")
    assert found["k"].dtype == np.int64 and found["w"].dtype == np.float64
    taken = tensors.take(found, "w", (2, None), "w.safetensors")
    assert taken.dtype == np.float32 and taken.shape == (2, 3)
    assert tensors.take(found, "k", (), "w.safetensors") == 7


def refused(message: str) -> pytest.RaisesExc:
    return pytest.raises(UserError, match=re.escape(message))


def test_a_missing_file_and_a_folder(tmp_path: Path):
    with refused(f"no file {tmp_path / 'none'}"):
        tensors.load(tmp_path / "none")
    with refused("is a folder, expected a file"):
        tensors.load(tmp_path)


@pytest.mark.parametrize("start", [b"PK\x03\x04rest of a zip", b"\x80\x02}q\x00."], ids=["zip", "pickle"])
def test_a_pickle_under_the_name_of_safetensors(tmp_path: Path, start: bytes):
    file = tmp_path / "sae.safetensors"
    file.write_bytes(start)
    with refused(f"{file} is a pickle or zip archive (torch.save), expected safetensors"):
        tensors.load(file)


def test_a_header_whose_length_looks_like_the_start_of_a_pickle(tmp_path: Path):
    file = tmp_path / "sae.safetensors"
    header = json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode().ljust(0x280)
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\1\2")
    assert file.read_bytes().startswith(b"\x80\x02")
    np.testing.assert_array_equal(tensors.load(file)["a"], [1, 2])


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all", b"\x08\0\0\0\0\0\0\0{}      "[:11]])
def test_a_damaged_file(tmp_path: Path, content: bytes):
    file = tmp_path / "sae.safetensors"
    file.write_bytes(content)
    with refused(f"{file} cannot be read as safetensors"):
        tensors.load(file)


def test_a_cut_file(tmp_path: Path):
    file = tmp_path / "sae.safetensors"
    save_file({"a": VALUES}, file)
    file.write_bytes(file.read_bytes()[:-3])
    with refused(f"{file} cannot be read as safetensors"):
        tensors.load(file)


def test_a_type_that_numpy_does_not_have(tmp_path: Path):
    file = tmp_path / "sae.safetensors"
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with refused(f"{file}: 'a' is of type F8_E4M3, expected one of F64, F32, F16, BF16"):
        tensors.load(file)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("W_enk", (2, 3), "f: no tensor 'W_enk', expected one of shape [2, 3]; did you mean 'W_enc'?"),
        ("W_enc", (3, 2), "f: 'W_enc' has shape [2, 3], expected [3, 2]"),
        ("W_enc", (2,), "f: 'W_enc' has shape [2, 3], expected [2]"),
        ("W_enc", (2, 3, None), "f: 'W_enc' has shape [2, 3], expected [2, 3, any]"),
        ("W_enc", (), "f: 'W_enc' has shape [2, 3], expected [] (a scalar)"),
        ("empty", (None, 3), "f: 'empty' has shape [0, 3], expected [any, 3]"),
        ("nan", (2,), "f: 'nan' holds NaN or infinity"),
        ("inf", (2,), "f: 'inf' holds NaN or infinity"),
        ("huge", (1,), "f: 'huge' holds NaN or infinity"),
        ("text", (1,), "f: 'text' is of type array of <U1, expected a tensor of shape [1]"),
        ("word", (), "f: 'word' is of type str, expected a tensor of shape [] (a scalar)"),
    ],
)
def test_what_take_refuses(key: str, shape: tuple[int | None, ...], message: str):
    held = {
        "W_enc": VALUES,
        "empty": VALUES[:0],
        "nan": np.array([1, np.nan]),
        "inf": np.array([-np.inf, 1]),
        "huge": np.array([1e300]),
        "text": np.array(["a"]),
        "word": "TopK",
    }
    with refused(message):
        tensors.take(held, key, shape, "f")


def test_unknown_tensors_are_refused():
    tensors.refuse_unknown(["a"], ("a", "b"), "f")
    with refused("f: unknown tensor 'W_skip'; this format has a, b"):
        tensors.refuse_unknown(["a", "W_skip"], ("a", "b"), "f")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[1]", "holds a list, expected a JSON"),
    ],
)
def test_json_that_is_no_config(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "cfg.json").write_bytes(content)
    with refused(message):
        tensors.read_json(tmp_path / "cfg.json")
    with refused("no file"):
        tensors.read_json(tmp_path / "config.json")


def test_settings_have_types():
    config = {"k": 32, "d": 2.5, "on": True, "name": "a"}
    assert forms.setting(config, "k", int, "f") == 32
    assert forms.setting(config, "k", float, "f") == 32.0
    for key, kind, message in [
        ("n", int, "f: no key 'n', expected int"),
        ("on", int, "f: 'on' is True, expected int"),
        ("d", int, "f: 'd' is 2.5, expected int"),
        ("name", dict, "f: 'name' is 'a', expected dict"),
    ]:
        with refused(message):
            forms.setting(config, key, kind, "f")


def test_a_tensor_is_read_when_it_is_taken_and_not_before(tmp_path: Path):
    file = tmp_path / "w.safetensors"
    save_file({"a": VALUES, "b": VALUES.T.copy()}, file)
    held = tensors.load(file)
    file.unlink()
    assert "a" in held and len(held) == 2 and held.shapes == {"a": (2, 3), "b": (3, 2)}
    assert tensors.fits(held, "a", (None, 3), file) == (2, 3)
    with refused("'b' has shape [3, 2], expected [2, 2]"):
        tensors.take_all(held, {"a": (2, 3), "b": (2, 2)}, file)
    with refused("cannot be read as safetensors"):
        tensors.take_all(held, {"a": (2, 3), "b": (3, 2)}, file)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_weights_of_integers_may_be_quantised_and_are_no_weights(tmp_path: Path, dtype: type):
    file = tmp_path / "w.safetensors"
    save_file({"w": np.ones((2, 3), dtype), "sizes": np.array([1, 2], dtype)}, file)
    with refused("'w' holds integers, which may be quantised, expected floats"):
        tensors.take(tensors.load(file), "w", (2, 3), file)
    sizes = tensors.take(tensors.load(file), "sizes", (2,), file, whole=True)
    np.testing.assert_array_equal(sizes, np.array([1, 2], dtype).astype(np.float32))


def test_counts_texts_and_layers():
    config = {"k": 3, "zero": 0, "name": "a", "none": None, "list": []}
    assert forms.count(config, "k", "f", 3) == 3 and forms.text(config, "name", "f") == "a"
    assert forms.text(config, "none", "f") is None and forms.text(config, "absent", "f") is None
    assert tensors.layer_number("12", "f") == 12
    for call, message in (
        (lambda: forms.count(config, "zero", "f"), "f: 'zero' is 0, expected at least 1"),
        (lambda: forms.count(config, "k", "f", 2), "f: k is 3 but there are 2 features"),
        (lambda: forms.text(config, "list", "f"), "f: 'list' is [], expected str"),
        (lambda: tensors.layer_number("9" * 5000, "f"), "expected a number of at most"),
        (lambda: tensors.layer_number("٣", "f"), "expected a number of at most"),
    ):
        with refused(message):
            call()
