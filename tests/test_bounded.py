"""What other people's files may hold, and what is refused before it is read: size, depth, kind, form."""

import gzip
import io
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jhsae.errors import UserError
from jhsae.files import archives, bounded, forms, tensor_files


def refused(message: str) -> pytest.RaisesExc:
    return pytest.raises(UserError, match=re.escape(message))


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# files


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is no file"),
        (lambda p: p.mkdir(), "is a folder, expected a file"),
        (lambda p: os.mkfifo(p), "is a FIFO, a device or a socket"),
        (lambda p: p.symlink_to("/dev/zero"), "is a FIFO, a device or a socket"),
        (lambda p: p.symlink_to(p.parent / "none"), "there is no file"),
        (lambda p: p.symlink_to(p), "cannot be opened"),
    ],
    ids=["none", "folder", "fifo", "device", "dangling", "loop"],
)
def test_only_regular_files_are_read(tmp_path: Path, make, message: str):
    make(tmp_path / "file")
    parsers = (bounded.read_object, bounded.read_lines, bounded.load_yaml)
    for read in (*parsers, tensor_files.tensor_header, archives.load_npz):
        with refused(message):
            read(tmp_path / "file")
    for call in (bounded.size_of, lambda p: bounded.read_start(p, 4), lambda p: bounded.read_gzip(p, 4)):
        with refused(message):
            call(tmp_path / "file")


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_names_that_no_file_has(name: str):
    with refused("cannot be opened"):
        bounded.read_json(name)


def test_an_escape_that_is_spelt_out_is_text():
    assert bounded.parse_json(b'{"a": "\\\\ud800", "b": "\\ud83d\\ude00"}', "f") == {"a": "\\ud800", "b": "\U0001f600"}


def test_a_link_to_a_file_is_read_as_in_the_cache_of_the_hub(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    written(tmp_path / "blobs" / "abc", '{"a": 1}')
    (tmp_path / "snapshot" / "config.json").symlink_to("../blobs/abc")
    assert bounded.read_object(tmp_path / "snapshot" / "config.json") == {"a": 1}


def test_a_file_beyond_its_limit_is_not_read(tmp_path: Path):
    assert bounded.read_bytes(written(tmp_path / "f", b"1234"), 4) == b"1234"
    with refused("has 4 bytes, expected at most 3"):
        bounded.read_bytes(tmp_path / "f", 3)
    with refused("has more than 10 bytes"):
        bounded.read_bytes("/proc/self/maps", 10)  # says that it has none
    assert bounded.read_start(tmp_path / "f", 2) == b"12" and bounded.read_start(tmp_path / "f", 9) == b"1234"


def test_gzip_expands_up_to_its_limit(tmp_path: Path):
    file = written(tmp_path / "f.gz", gzip.compress(b"a" * 1000))
    assert bounded.read_gzip(file, 1000) == b"a" * 1000
    with refused("expands to more than 999 bytes"):
        bounded.read_gzip(file, 999)
    for content in (gzip.compress(b"a" * 1000)[:-9], b"not gzip", gzip.compress(b"abc")[:-4] + b"\1\2\3\4"):
        with refused("cannot be read as gzip"):
            bounded.read_gzip(written(tmp_path / "bad.gz", content), 1000)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up", "a/../../b", "", ".", "a\0b", "a\\b", None, 3, ["a"], {"a": 1}]
)
def test_names_that_leave_their_folder(name):
    with refused("expected a path inside of"):
        bounded.inside("folder", name, "index.json")


def test_names_inside_of_a_folder():
    assert bounded.inside("folder", "a/b.safetensors", "index.json") == Path("folder/a/b.safetensors")


# JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe{\0}\0", "cannot be read as JSON"),  # UTF-16
        (b"\xef\xbb\xbf{}", "cannot be read as JSON"),  # with a byte order mark
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is no JSON"),
        (b'{"a": 1e999}', "is beyond the range of a float"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        (b'{"a": ' + b"9" * 50 + b"}", "is beyond any number that is meant"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is beyond any number that is meant"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64 deep"),
        (b"[" * 200_000, "nested more than 64 deep"),
        (b"[" + b"1," * 3_000_001 + b"1]", "values, expected at most 3,000,000"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: bytes, message: str):
    file = written(tmp_path / "f.json", text)
    with refused(message) as caught:
        bounded.read_json(file)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 500


def test_json_as_it_is():
    value = {"a": [1, 2.5, None, True, "ä😀"], "b": {"c": 10**30}}
    assert bounded.parse_json(json.dumps(value).encode(), "f") == value
    assert bounded.parse_json("[" * 64 + "]" * 64, "f")
    assert bounded.parse_json('["\\ud83d\\ude00"]', "f") == ["😀"]  # both halves


def test_only_objects_are_objects(tmp_path: Path):
    with refused("holds a list, expected a JSON object"):
        bounded.read_object(written(tmp_path / "f.json", "[]"))


def test_lines_without_the_one_that_a_kill_cut_short(tmp_path: Path):
    file = written(tmp_path / "f.jsonl", '{"a": 1}\n\n{"a": NaN}\n{"a"')
    assert bounded.read_lines(file) == [{"a": 1}, {"a": None}]
    with refused("f.jsonl, line 3 cannot be read as JSON (NaN is no JSON)"):
        bounded.read_lines(file, nan=False)
    with refused("f.jsonl, line 2 cannot be read as JSON"):
        bounded.read_lines(written(tmp_path / "f.jsonl", '{}\n{"a"\n{}\n'))


def test_nan_is_written_as_null():
    assert bounded.to_json({"a": [float("nan"), np.float32("inf"), np.int64(3), 1.5]}) == '{"a": [null, null, 3, 1.5]}'


# YAML

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "more than 20,000 nodes"),
        ("a: &a [*a]", "uses *a before &a or inside of it"),
        ("- " * 100 + "a", "nested more than 64 deep"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" + "a, " * 20_001 + "]", "more than 20,000 nodes"),
        ("a: 1" + ":1" * 1000, "holds a number of 2,001 digits"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        (b"\xff\xfea\0", "not valid YAML"),
        ("a: 1\n---\nb: 1", "not valid YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str | bytes, message: str):
    with refused(message):
        bounded.load_yaml(written(tmp_path / "f.yaml", text))


def test_yaml_as_it_is(tmp_path: Path):
    file = written(tmp_path / "f.yaml", "a: &x {b: 1}\nc: {<<: *x, d: [1.5, ä]}\n")
    assert bounded.load_yaml(file) == {"a": {"b": 1}, "c": {"b": 1, "d": [1.5, "ä"]}}
    with refused("expected at most 1,048,576"):
        bounded.load_yaml(written(file, b"a" * (2**20 + 1)))


# safetensors


def header(tensors: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: object, start: object, stop: object, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        header({}, length=2**62),
        header({}, length=200 * 2**20),
        header(b"[]"),
        header({"a": 3}),
        header({"a": {}}),
        header({"a": tensor([2], 0, 8, "F33")}, b"\0" * 8),
        header({"a": tensor([2], 0, 8, ["F32"])}, b"\0" * 8),
        header({"a": tensor("2", 0, 8)}, b"\0" * 8),
        header({"a": tensor([2.0], 0, 8)}, b"\0" * 8),
        header({"a": tensor([True, 2], 0, 8)}, b"\0" * 8),
        header({"a": tensor([-2], 0, 8)}, b"\0" * 8),
        header({"a": tensor([2], 8, 0)}, b"\0" * 8),
        header({"a": tensor([2], 0, 16)}, b"\0" * 8),
        header({"a": tensor([3], 0, 8)}, b"\0" * 8),
        header({"a": tensor([2**62, 8], 0, 8)}, b"\0" * 8),
        header({"a": tensor([0, 2**70], 0, 0)}),
        header({"a": tensor([10**37] * 65, 0, 8)}, b"\0" * 8),
        header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"\0" * 12),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}', b"\0" * 4),
    ],
)
def test_safetensors_headers_that_do_not_fit(tmp_path: Path, content: bytes):
    with pytest.raises(UserError, match="safetensors") as caught:
        tensor_files.tensor_header(written(tmp_path / "w.safetensors", content))
    assert len(str(caught.value)) < 600


def test_a_safetensors_header(tmp_path: Path):
    file = tmp_path / "w.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(0, np.int8)}, file, metadata={"activation": "TopK"})
    found = tensor_files.tensor_header(file)
    assert found["a"][:2] == ("F32", (2, 3)) and found["b"].shape == (0,)
    assert tensor_files.tensor_metadata(file) == {"activation": "TopK"}
    with refused("has the metadata"):
        tensor_files.tensor_metadata(written(file, header({"__metadata__": {"k": 3}})))


def test_a_large_file_of_holes_is_refused(tmp_path: Path):
    text = header({"a": tensor([10 * 2**28], 0, 10 * 2**30)})
    with written(tmp_path / "w.safetensors", text).open("r+b") as file:
        file.truncate(len(text) + 10 * 2**30)
    with refused("were ever written"):
        tensor_files.tensor_header(tmp_path / "w.safetensors")


# npz


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    text = io.BytesIO()
    np.lib.format.write_array(text, array, version, allow_pickle=True)
    return text.getvalue()


def fake(shape: object, descr: object = "<f4", data: bytes = b"", size: int = 0) -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    text = text.rjust(size)
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + data


def test_an_npz_comes_back(tmp_path: Path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "text": np.array('{"k": 3}'),
        "scalar": np.array(3),
        "empty": np.zeros((0, 3)),
        "big": np.arange(3, dtype=">f8"),
        "flags": np.array([True, False]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "f.npz", **arrays)
        found = archives.load_npz(tmp_path / "f.npz")
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)
            assert found[key].dtype == array.dtype and found[key].shape == array.shape
    assert archives.npz_header(tmp_path / "f.npz")["a"].shape == (2, 3)
    assert archives.load_npz(tmp_path / "f.npz", keys=["a"]).keys() == {"a"}


@pytest.mark.parametrize(
    "members",
    [
        {"a.npy": npy(np.array([{}], object))},
        {"a.npy": npy(np.array([(1, 2)], "i4,i4"))},
        {"a.npy": npy(np.array(["2001-01-01"], "M8[D]"))},
        {"a.npy": b"no array"},
        {"a.npy": b""},
        {"a.txt": b"no array"},
        {"a.npy": npy(np.ones(3))[:-1]},
        {"a.npy": npy(np.ones(3)) + b"\0"},
        {"a.npy": fake((10**9,))},
        {"a.npy": fake((-2, -2), data=b"\0" * 16)},
        {"a.npy": fake((10**9,), "|S0")},
        {"a.npy": fake((2**63, 2), data=b"\0" * 8)},
        {"a.npy": fake("abc")},
        {"a.npy": fake((1,), data=b"\0" * 4, size=10**6)},
        {"a.npy": b"\x93NUMPY\x03\x00" + b"\0" * 20},
        {"a.npy": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000},
    ],
)
def test_members_that_are_no_arrays(tmp_path: Path, members: dict[str, bytes]):
    with refused("is not an npz file of plain arrays"):
        archives.load_npz(archive(tmp_path / "f.npz", members))


def test_a_bomb_is_not_expanded(tmp_path: Path):
    bomb = archive(tmp_path / "f.npz", {"a.npy": fake((2**27,), data=bytes(2**29))})
    assert bomb.stat().st_size < 2**20
    with refused("expands to 536,"):
        archives.load_npz(bomb)
    assert archives.load_npz(bomb, 2**30, keys=[]) == {}


def test_archives_with_too_many_members_packed_or_twice(tmp_path: Path):
    many = archive(tmp_path / "many.npz", {f"{i:0200}.npy": b"" for i in range(20_000)}, zipfile.ZIP_STORED)
    with refused("lists its members in"):
        archives.load_npz(many)
    with refused("packed in an unusual way"):
        archives.load_npz(archive(tmp_path / "lzma.npz", {"a.npy": npy(np.ones(3))}, zipfile.ZIP_LZMA))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.npz", "w") as file:
        file.writestr("a.npy", npy(np.ones(3)))
        file.writestr("a.npy", npy(np.zeros(3)))
    with refused("two members 'a.npy'"):
        archives.load_npz(tmp_path / "twice.npz")


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-10], lambda b: b"", lambda b: b[:40] + b"\xff" + b[41:], lambda b: b[50:]]
)
def test_archives_that_are_damaged(tmp_path: Path, spoil):
    content = archive(tmp_path / "f.npz", {"a.npy": npy(np.arange(100.0))}).read_bytes()
    with refused("is not an npz file of plain arrays"):
        archives.load_npz(written(tmp_path / "f.npz", spoil(content)))


# forms

FORM = {"name": forms.TEXT, "k?": forms.COUNT, "list": [{"x": forms.NUMBER}], "each?": forms.Each(forms.PLAIN)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "f: 'name' is 3, expected a string"),
        ({"name": None}, "f: 'name' is None, expected a string"),
        ({"k": -1}, "f: 'k' is -1, expected a whole number of at least 0"),
        ({"k": True}, "f: 'k' is True, expected a whole"),
        ({"k": 10**16}, "expected a whole number"),
        ({"list": {}}, "f: 'list' is {}, expected a list"),
        ({"list": [{"x": 1}, {"x": "1"}]}, "f: 'list.1.x' is '1', expected a number"),
        ({"list": [{}]}, "f: the key 'list.0.x' is missing"),
        ({"list": [{"x": float("nan")}]}, "is nan, expected a number"),
        ({"list": [{"x": 1e31}]}, "expected a number"),
        ({"list": [3]}, "f: 'list.0' is 3, expected an object"),
        ({"each": {"a": []}}, "f: 'each.a' is [], expected a string or a number"),
    ],
)
def test_values_of_another_form(change: dict, message: str):
    right = {"name": "a", "k": None, "list": [{"x": 1}], "each": {"a": 1.5, "b": "c"}, "more": object()}
    forms.check(right, FORM, "f")
    with refused(message):
        forms.check(right | change, FORM, "f")
    with refused("f is [], expected an object"):
        forms.check([], FORM, "f")


def test_a_number_of_a_megabyte_is_refused_before_it_is_scanned(monkeypatch):
    """PyYAML has read it for more than 20 seconds before it is an event."""
    monkeypatch.setattr("yaml.parse", lambda *_, **__: pytest.fail("it is scanned"))
    with pytest.raises(UserError, match=r"a number of more than 10,000 digits, expected at most 1,000"):
        bounded.check_yaml("a: 1" + ":1" * 400_000, "config.yaml")
