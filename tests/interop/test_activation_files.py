"""Activations in files of others: the rows that are there, in the order of the shards, or one sentence."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

from jhsae.errors import UserError
from jhsae.interop.activation_files import open_source

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
IDS = RNG.integers(0, 9, size=60)


def table(path: Path, rows: int = 16, **columns: object) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def rows_of(source) -> np.ndarray:
    return np.concatenate([rows for block in source.blocks for _, rows in block.pieces(source.embed)])


def written(folder: Path, kind: str, x: np.ndarray = X, name: str = "x") -> Path:
    path = folder / f"{name}.{kind}"
    if kind == "npy":
        np.save(path, x)
    elif kind == "safetensors":
        save_file({"acts": x}, path)
    elif kind == "parquet":
        table(path, acts=list(x))
    else:
        pytest.importorskip("torch").save(pytest.importorskip("torch").tensor(x), path)
    return path


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet", "pt"])
def test_a_file_and_its_shards_hold_the_rows(tmp_path, kind):
    whole = open_source(written(tmp_path, kind), unpickle=True)
    assert whole.axes == (60,) and whole.embed == 4
    np.testing.assert_array_equal(rows_of(whole), X)
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(12):
        written(folder, kind, X[5 * number : 5 * number + 5], f"part_{number}")
    (folder / "README.md").write_text("about")
    found = open_source(folder, unpickle=True)
    assert found.axes == (60,) and [shard.path.stem for shard in found.shards][9:11] == ["part_9", "part_10"]
    np.testing.assert_array_equal(rows_of(found), X)
    assert [block.start for block in found.blocks] == list(range(0, 60, 5)) and len(found.fingerprint()) == 12


def test_narrow_floats_are_exact(tmp_path):
    torch = pytest.importorskip("torch")
    narrow = X.astype(ml_dtypes.bfloat16)
    torch.save({"acts": torch.tensor(X).bfloat16(), "ids": torch.tensor(IDS)}, tmp_path / "a.pt")
    save_file({"acts": narrow, "ids": IDS}, tmp_path / "a.safetensors")
    table(tmp_path / "a.parquet", acts=pa.array(list(X.astype(np.float16)), pa.list_(pa.float16(), 4)), ids=IDS)
    for kind, exact in (("pt", narrow), ("safetensors", narrow), ("parquet", X.astype(np.float16))):
        found = open_source(tmp_path / f"a.{kind}", labels=["ids"], unpickle=True)
        np.testing.assert_array_equal(rows_of(found).astype(np.float32), exact.astype(np.float32))
        np.testing.assert_array_equal(found.labels("ids", "tokens"), IDS)


def test_documents_of_shards_of_different_lengths_keep_their_positions(tmp_path):
    np.save(tmp_path / "0.npy", X[:24].reshape(4, 6, 4))
    np.save(tmp_path / "1.npy", X[24:].reshape(4, 9, 4))
    found = open_source(tmp_path)
    assert found.axes == (60,)
    np.testing.assert_array_equal(found.positions, [*range(6)] * 4 + [*range(9)] * 4)
    np.testing.assert_array_equal(rows_of(found), X)
    np.save(tmp_path / "1.npy", X[24:].reshape(6, 6, 4))
    assert open_source(tmp_path).axes == (10, 6)


def test_labels_are_files_or_parts_of_the_source(tmp_path):
    words = [f" w{i}" for i in IDS]
    path = table(tmp_path / "x.parquet", acts=list(X), text=words, ids=IDS)
    found = open_source(path, labels=["text", "ids"])
    (tmp_path / "t.txt").write_bytes("\r\n".join(words).encode() + b"\n")
    (tmp_path / "t.json").write_text(str(words).replace("'", '"'))
    np.save(tmp_path / "i.npy", IDS.reshape(6, 10))
    for name in ("text", tmp_path / "t.txt", tmp_path / "t.json"):
        assert found.labels(str(name), "text").tolist() == words
    for name in ("ids", tmp_path / "i.npy"):
        np.testing.assert_array_equal(found.labels(str(name), "tokens"), IDS)
    with pytest.raises(UserError, match=r"tokens is idz, which is neither a file nor in .*did you mean 'ids'"):
        found.labels("idz", "tokens")
    with pytest.raises(UserError, match="holds lists, expected one value in each row"):
        found.labels("acts", "tokens")


def npy(x):
    return lambda path: np.save(path / "x.npy", x)


def raw(name: str, content: bytes):
    return lambda path: (path / name).write_bytes(content)


def lists(*values: object, **options: object):
    return lambda path: table(path / "x.parquet", acts=pa.array(values, **options))


def both(*makers):
    return lambda path: [make(path) for make in makers]


REFUSED = [
    (npy(np.array([{}], object)), r"x.npy is not an npy file of numbers: its array holds Python objects"),
    (npy(X.astype(ml_dtypes.bfloat16)), "bfloat16 has no name there, so save it as float32"),
    (npy(X.astype(int)), "x.npy holds int64, expected activations in a floating-point type"),
    (npy(X > 0), "x.npy holds bool, expected"),
    (npy(np.array(["a"])), r"x.npy has shape \[1\], expected \[rows, embed\]"),
    (npy(X[:0]), r"x.npy has shape \[0, 4\], expected at least one row"),
    (npy(np.float32(3)), r"x.npy has shape \[\], expected"),
    (raw("x.npy", b"text"), "its array is none"),
    (raw("x.npy", b""), "its array is none"),
    (raw("x.safetensors", b"PK\3\4"), "cannot be read as safetensors"),
    (raw("x.parquet", b"PAR1"), "cannot be read as Parquet"),
    (raw("x.pt", b"text"), "is not a state dict of tensors"),
    (raw("x.csv", b"1,2"), "holds no .npy"),
    (both(npy(X), raw("y.pt", b"")), r"holds files of several kinds \(.npy, .pt\)"),
    (both(npy(X), lambda p: np.save(p / "y.npy", X[:, :3])), "y.npy holds rows of 3 numbers and .*x.npy of 4"),
    (both(npy(X), lambda p: np.save(p / "y.npy", X[None])), r"y.npy has 3 axes and .*x.npy 2"),
    (lambda p: save_file({"a": X, "b": X}, p / "x.safetensors"), "holds a, b, expected one array.*write key=NAME"),
    (lambda p: save_file({}, p / "x.safetensors"), "holds nothing, expected one array"),
    (lists([1.0, 2.0], [1.0]), "holds 1.5 numbers per row on average"),
    (lists([1.0, 2.0], [1.0], [1.0, 2.0, 3.0]), r"has 1 numbers in a row, expected 2|has 3 numbers"),
    (lists([1.0], None), "numbers per row|is null in a row"),
    (lists([1.0, 2.0], None, type=pa.list_(pa.float32(), 2)), "is null in a row"),
    (lists([1.0, None]), "has a null among its numbers"),
    (lists([1, 2]), "holds lists of int64, expected lists of floats"),
    (lists([[1.0]]), "holds lists of lists"),
    (lists(1.0, 2.0), "holds one float, double in each row, expected a list of numbers"),
    (lists("a"), "holds one string in each row"),
    (lists(type=pa.list_(pa.float32())), r"has shape \[0, 0\], expected"),
    (lists(type=pa.list_(pa.float32(), 2**24)), "holds 16,777,216 numbers per row"),
    (lambda p: (p / "manifest.json").write_text("{}"), "holds a manifest.json, as a store does"),
    (lambda p: os.mkfifo(p / "x.npy"), "is a FIFO"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED)
def test_what_holds_no_activations_is_refused(tmp_path, make, sentence):
    make(tmp_path)
    files = [*tmp_path.iterdir()]
    for place in (tmp_path, *([files[0]] if len(files) == 1 and files[0].suffix not in (".csv", ".json") else [])):
        with pytest.raises(UserError, match=sentence) as caught:
            rows_of(open_source(place, unpickle=True))
        assert "\n" not in str(caught.value)


def test_pickles_need_the_switch_and_hold_tensors_alone(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.tensor(X), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"is a pickle, which can run code.*write unpickle=True"):
        open_source(tmp_path / "x.pt")
    torch.save([torch.tensor(X)], tmp_path / "list.pt")
    torch.save({"a": 3}, tmp_path / "none.pt")
    torch.save(Path("x"), tmp_path / "code.pt")
    for name, sentence in (("list", "without a tensor"), ("none", "without a tensor"), ("code", "not a state dict")):
        with pytest.raises(UserError, match=sentence):
            open_source(tmp_path / f"{name}.pt", unpickle=True)
    transposed = torch.tensor(X).T.contiguous().T
    torch.save({"acts": transposed, "other": torch.zeros(3)}, tmp_path / "t.pt")
    np.testing.assert_array_equal(rows_of(open_source(tmp_path / "t.pt", unpickle=True)), X)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("none.npy", "there is no file"),
        ("gs://bucket/x.npy", "is in a bucket, expected files of this machine"),
        ("a\0b.npy", "cannot be opened"),
    ],
)
def test_places_that_hold_no_file(tmp_path, monkeypatch, path, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        open_source(path)
