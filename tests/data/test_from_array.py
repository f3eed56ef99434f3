"""A store of an array: every row once, with its place, whatever the order, the axes and the size of blocks."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jhsae.data import Store, from_array, write_array
from jhsae.data.places import has_tokens, places_of
from jhsae.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)).astype(np.float32)
DOCS = X.reshape(12, 10, 4)
IDS = RNG.integers(0, 50, size=(12, 10))


def contents(store: Store) -> list[tuple]:
    """Rows with their index, sorted: the order of a store is random."""
    return sorted(zip(*(store.index(0, store.rows).T.tolist()), *store.read(0, store.rows).T.tolist(), strict=True))


def expected(index: np.ndarray, x: np.ndarray = X) -> list[tuple]:
    return sorted(zip(*index.T.tolist(), *x.T.tolist(), strict=True))


@pytest.mark.parametrize("shuffle_rows", [None, 32, 50])
def test_rows_and_documents_are_where_they_were(tmp_path, shuffle_rows):
    layout = {"shuffle_rows": shuffle_rows, "shard_rows": 16, "chunk_rows": 8}
    doc, position = np.divmod(np.arange(120), 10)
    found = Store.from_array(DOCS, tmp_path / "docs", tokens=IDS, **layout)
    assert contents(found) == expected(np.stack([doc, position, IDS.reshape(-1)], axis=1))
    np.testing.assert_array_equal(found.tokens(), IDS)
    flat = Store.from_array(X, tmp_path / "flat", tokens=IDS.reshape(-1), positions=position, **layout)
    assert contents(flat) == contents(found) and flat.manifest.dataset == found.manifest.dataset
    np.testing.assert_allclose(flat.manifest.mean, X.astype(np.float64).mean(0), atol=1e-12)
    alone = Store.from_array(X, tmp_path / "alone", **layout)
    assert contents(alone) == expected(np.stack([np.arange(120), 0 * doc, 0 * doc], axis=1))
    assert has_tokens(found.manifest.dataset) and not has_tokens(alone.manifest.dataset)
    order = alone.index(0, 120)[:, 0]
    assert not np.array_equal(order, np.arange(120))


def test_a_mapped_file_gives_the_bytes_of_the_array_and_is_read_in_blocks(tmp_path, monkeypatch):
    """No more than a group of rows is read at a time, and each block once."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "f.npy", np.asfortranarray(DOCS))
    read = []

    def counted(rows, *options, **more):
        read.append(len(rows))
        return host_rows(rows, *options, **more)

    host_rows = from_array.host_rows
    monkeypatch.setattr(from_array, "BLOCK_ROWS", 8)
    monkeypatch.setattr(from_array, "GROUP_BYTES", 4 * 4 * 32)
    layout = {"shard_rows": 16, "chunk_rows": 8}
    whole = write_array(tmp_path / "whole", X, **layout)
    monkeypatch.setattr(from_array, "host_rows", counted)
    mapped = write_array(tmp_path / "mapped", np.load(tmp_path / "x.npy", mmap_mode="r"), **layout)
    assert mapped.identity() == whole.identity() and max(read) <= 32 and sum(read) == len(X) + 1
    fortran = write_array(tmp_path / "fortran", np.load(tmp_path / "f.npy", mmap_mode="r"), **layout)
    assert contents(fortran) == contents(write_array(tmp_path / "docs", DOCS, **layout))


@pytest.mark.parametrize(
    "x",
    [X.tolist(), jnp.asarray(X), X.astype(np.float64), X.astype(">f4"), X.astype(ml_dtypes.bfloat16), DOCS.tolist()],
    ids=["list", "jax", "float64", "big endian", "bfloat16", "documents"],
)
def test_arrays_of_any_float_are_taken(tmp_path, x):
    stored = np.sort(Store.from_array(x, tmp_path / "s").read(0, 120), axis=0)
    np.testing.assert_allclose(stored, np.sort(X, axis=0), rtol=1e-2)


def test_a_tensor_of_torch_is_taken(tmp_path):
    torch = pytest.importorskip("torch")
    x = torch.tensor(DOCS, requires_grad=True)
    found = Store.from_array(x, tmp_path / "s", tokens=torch.tensor(IDS))
    assert contents(found) == contents(Store.from_array(DOCS, tmp_path / "n", tokens=IDS))
    assert Store.from_array(x.bfloat16(), tmp_path / "b").rows == 120


def test_padding_is_left_out(tmp_path):
    """Positions of -1 leave rows out, also those that are not finite; gaps of a text are recorded."""
    positions = np.tile(np.arange(10), (12, 1))
    positions[:, 7:] = -1
    positions[3] = -1
    x = np.where(positions[..., None] < 0, np.nan, DOCS)
    found = Store.from_array(
        x, tmp_path / "s", tokens=IDS, positions=positions, shuffle_rows=16, shard_rows=16, chunk_rows=8
    )
    kept = [(d, p) for d in range(12) for p in range(7) if d != 3]
    index = np.array([(d - (d > 3), p, IDS[d, p]) for d, p in kept])
    assert contents(found) == expected(index, np.stack([DOCS[d, p] for d, p in kept]))
    assert found.tokens().shape == (11, 7) and "gaps" not in found.manifest.dataset
    positions[5, 6] = -1
    gaps = Store.from_array(DOCS, tmp_path / "gaps", tokens=IDS, positions=positions)
    assert gaps.manifest.dataset["gaps"] is True and gaps.rows == 76


def test_text_is_kept_once_for_each_token(tmp_path):
    text = [["a", "b", "a"], ["c", "b", "\ud800"]]
    found = Store.from_array(DOCS[:2, :3], tmp_path / "s", text=text)
    assert found.manifest.tokenizer == {"vocabulary": {"0": "a", "1": "b", "2": "c", "3": "\\ud800"}}
    np.testing.assert_array_equal(found.tokens(), [[0, 1, 0], [2, 1, 3]])
    both = Store.from_array(DOCS[0, :2], tmp_path / "t", text=["x", "y"], tokens=[7, 3])
    assert (
        both.manifest.tokenizer["vocabulary"] == {"7": "x", "3": "y"}
        and both.manifest.dataset["tokens"] == "ids and text"
    )


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (X[0], {}, r"x has shape \[4\], expected \[rows, embed\] or \[docs, positions, embed\]"),
        (X[:0], {}, r"x has shape \[0, 4\], expected at least one row"),
        (DOCS[:, :0], {}, r"x has shape \[12, 0, 4\], expected at least one row"),
        (DOCS[None], {}, r"x has shape \[1, 12, 10, 4\], expected"),
        (X.astype(int), {}, "x holds int64, expected activations in a floating-point type"),
        (X.astype(object), {}, "x holds object, expected"),
        (X.astype(np.complex64), {}, "x holds complex64, expected"),
        ([[1.0], [1.0, 2.0]], {}, "x is a list that is no array of numbers"),
        (np.where(X[7, 0] == X, np.inf, X), {}, "x is not finite in 1 of 120 rows: 7"),
        (X, {"tokens": IDS[:3]}, "tokens holds 30 numbers, but x has 120 rows"),
        (X, {"tokens": X[:, 0]}, "tokens holds float32, expected whole numbers"),
        (X, {"tokens": np.full(120, 2**24)}, "tokens holds 16,777,216, expected numbers from 0"),
        (X, {"tokens": np.full(120, -1)}, "tokens holds -1, expected numbers from 0"),
        (X, {"positions": np.full(120, -1)}, "every position is negative"),
        (X, {"positions": np.arange(120) * 10**6}, "positions go up to 119,000,000 in 1 documents"),
        (DOCS, {"positions": np.zeros(120, int)}, "positions of document 0 do not rise: 0 at row 1"),
        (X, {"text": ["a"] * 119}, "text holds 119 strings, but x has 120 rows"),
        (X, {"text": [3] * 120}, "text has a int for row 0"),
        (X[:2], {"text": ["a", "b"], "tokens": [1, 1]}, "token 1 has two texts, 'a' and 'b'"),
        (X, {"dtype": "float16"}, "a store of dtype 'float16' was asked for"),
        (X, {"layer": -1}, "layer"),
    ],
)
def test_what_is_no_store_is_refused_and_nothing_is_left(tmp_path, x, options, sentence):
    with pytest.raises(UserError, match=sentence):
        Store.from_array(x, tmp_path / "s", **options)
    assert not list(tmp_path.iterdir())


def test_a_row_that_is_not_finite_ends_a_store_that_is_written_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(from_array, "GROUP_BYTES", 64)
    x = X.copy()
    x[77] = np.nan
    with pytest.raises(UserError, match="x is not finite in row 77, counted from 0"):
        write_array(tmp_path / "s", x, shard_rows=16, chunk_rows=8)
    assert not list(tmp_path.iterdir())


def test_too_much_text_is_no_vocabulary(monkeypatch):
    monkeypatch.setattr("jhsae.data.places.VOCABULARY", 2)
    with pytest.raises(UserError, match="text holds 3 different strings of 3 bytes, expected at most 2"):
        places_of((3,), text=["a", "b", "c"])
