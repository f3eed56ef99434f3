import json

import ml_dtypes
import numpy as np
import pytest
from sealed import sealed
from small_stores import numbered

from jhsae.data import Origin, Store, Writer, manifest, write_array
from jhsae.errors import UserError

RNG = np.random.default_rng(0)
ORIGIN = Origin("toy", 2, {"name": "t"}, {"source": "s"}, 4, 0, {"rows": 100}, "abc123abc123")


def write(out, rows=100, dtype="bfloat16", origin=ORIGIN, **layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes a store in uneven pieces and returns (x, index, tokens) as they went in."""
    x = np.random.default_rng(1).normal(size=(rows, 4)).astype(np.float32)
    index = np.stack([np.arange(rows), np.arange(rows) % 7, np.arange(rows) % 5], axis=1).astype(np.int32)
    tokens = np.arange(60, dtype=np.uint32).reshape(6, 10)
    writer = Writer(
        out, origin, tokens, rows, 4, dtype, **({"shuffle_rows": 40, "shard_rows": 32, "chunk_rows": 8} | layout)
    )
    for part in np.split(np.arange(rows), [3, 50, 51]):
        writer.add(x[part], index[part])
    writer.close()
    return x, index, tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_row_is_stored_once_beside_its_index(tmp_path, dtype):
    x, index, tokens = write(tmp_path / "s", dtype=dtype)
    store = Store.open(tmp_path / "s")
    got = store.index(0, 100)
    order = got[:, 0]
    np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert not np.array_equal(order, np.arange(100))
    np.testing.assert_array_equal(got, index[order])
    stored = x if dtype == "float32" else x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(store.read(0, 100), stored[order])
    np.testing.assert_array_equal(store.read(31, 34), stored[order[31:34]])
    np.testing.assert_array_equal(store.tokens(), tokens)


def test_the_manifest_says_what_is_there(tmp_path):
    x, _, _ = write(tmp_path / "s", dtype="float32")
    store = Store.open(tmp_path / "s")
    m = store.manifest
    assert (m.model, m.layer, m.rows, m.embed, m.sequences, m.context, m.dtype) == ("toy", 2, 100, 4, 6, 10, "float32")
    assert (store.rows, store.embed, m.config_hash, m.documents) == (100, 4, "abc123abc123", 4)
    np.testing.assert_allclose(m.mean, x.astype(np.float64).mean(0), rtol=1e-13)
    np.testing.assert_allclose(m.rms_norm**2, np.mean(np.sum(x.astype(np.float64) ** 2, 1)), rtol=1e-13)
    on_disk = {str(p.relative_to(tmp_path / "s")) for p in (tmp_path / "s").rglob("*") if p.is_file()}
    assert on_disk == set(m.files) | {"manifest.json", "SHA256SUMS"}
    assert {"jax", "tensorstore", "numpy"} <= set(m.versions)


def test_two_writes_of_the_same_rows_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
    a, b = (Store.open(tmp_path / name).manifest.files for name in ("a", "b"))
    assert a == b


def test_reads_outside_the_store_are_refused(tmp_path):
    store = numbered(tmp_path / "s", 20)
    for start, stop in ((-1, 3), (0, 21), (5, 4)):
        with pytest.raises(UserError, match="which holds rows 0 to 20"):
            store.read(start, stop)


def test_a_store_is_never_overwritten(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(UserError, match="made by this very configuration: use it as it is"):
        write(tmp_path / "s")
    other = Origin("toy", 3, {}, {}, 0, 0, {}, "another hash")
    with pytest.raises(UserError, match="exists and is never overwritten; write another out="):
        write(tmp_path / "s", origin=other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="never overwritten"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_write_that_is_cut_off_never_looks_complete_and_can_be_repeated(tmp_path):
    writer = Writer(tmp_path / "s", ORIGIN, np.zeros((1, 2), np.uint32), 100, 4, shard_rows=32, chunk_rows=8)
    writer.add(np.ones((90, 4), np.float32), np.zeros((90, 3), np.int32))
    with pytest.raises(UserError, match="does not exist: a harvest of it was cut off; run the harvest again"):
        Store.open(tmp_path / "s")
    write(tmp_path / "s")
    assert Store.open(tmp_path / "s").rows == 100
    assert not (tmp_path / "s.partial").exists()


def test_too_few_rows_are_not_sealed(tmp_path):
    writer = Writer(tmp_path / "s", ORIGIN, np.zeros((1, 2), np.uint32), 10, 4)
    writer.add(np.ones((9, 4), np.float32), np.zeros((9, 3), np.int32))
    with pytest.raises(ValueError, match="9 rows were added to a store of 10"):
        writer.close()
    assert not (tmp_path / "s").exists()


def test_activations_that_are_not_finite_stop_the_harvest(tmp_path):
    writer = Writer(tmp_path / "s", ORIGIN, np.zeros((1, 2), np.uint32), 10, 4)
    x = np.ones((10, 4), np.float32)
    x[6, 1] = np.nan
    index = np.arange(30, dtype=np.int32).reshape(10, 3)
    with pytest.raises(UserError, match="sequence 18, position 19 is not finite"):
        writer.add(x, index)


def test_damage_is_found_when_the_store_is_opened(tmp_path):
    with pytest.raises(UserError, match="does not exist; run jhsae harvest first"):
        Store.open(tmp_path / "s")
    write(tmp_path / "s")
    shard = tmp_path / "s" / "activations" / "c" / "1" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"activations/c/1/0 has {len(whole) - 1} bytes, not {len(whole)}"):
        Store.open(tmp_path / "s")
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match="the checksum of activations/c/1/0 differs"):
        Store.open(tmp_path / "s")
    shard.unlink()
    with pytest.raises(UserError, match="activations/c/1/0 is missing"):
        Store.open(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json: an incomplete harvest"):
        Store.open(tmp_path / "s")


def test_damage_in_a_store_too_large_to_hash_is_found_when_it_is_read(tmp_path, monkeypatch):
    write(tmp_path / "s")
    shard = tmp_path / "s" / "activations" / "c" / "1" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    monkeypatch.setattr(manifest, "HASH_ON_OPEN_BYTES", 0)
    store = Store.open(tmp_path / "s")
    assert store.read(0, 32).shape == (32, 4)
    with pytest.raises(UserError, match="the store is damaged, harvest it again"):
        store.read(32, 64)


def test_a_manifest_of_another_format_is_named(tmp_path):
    write(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    known = json.loads(path.read_text())
    for text, message in (
        (json.dumps(known | {"format": 5}), "manifest of format 5, this version reads formats up to 4"),
        (json.dumps(known | {"surprise": 1}), "harvest again into a new folder"),
        ("{", "cannot be read as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=r"is damaged: the checksum of manifest\.json differs"):
            Store.open(tmp_path / "s")
        sealed(tmp_path / "s")
        with pytest.raises(UserError, match=message):
            Store.open(tmp_path / "s")


def test_a_url_is_written_in_place_and_sealed_by_its_manifest(tmp_path):
    """The way of buckets, on local files: no folder can be renamed there."""
    url = f"file://{tmp_path}/s"
    with pytest.raises(UserError, match="an incomplete harvest, or not a store"):
        Store.open(url)
    writer = Writer(url, ORIGIN, np.zeros((1, 2), np.uint32), 100, 4, shard_rows=32, chunk_rows=8)
    writer.add(np.ones((90, 4), np.float32), np.zeros((90, 3), np.int32))
    with pytest.raises(UserError, match="an incomplete harvest, or not a store"):
        Store.open(url)
    x, _, _ = write(url, dtype="float32")
    store = Store.open(url)
    np.testing.assert_array_equal(store.read(0, 100), x[store.index(0, 100)[:, 0]])
    np.testing.assert_array_equal(Store.open(tmp_path / "s").read(0, 100), store.read(0, 100))
    with pytest.raises(UserError, match="made by this very configuration"):
        write(url)


def test_an_unknown_dtype_is_named(tmp_path):
    with pytest.raises(UserError, match="dtype 'float16' was asked for"):
        write_array(tmp_path / "s", np.ones((4, 2), np.float32), dtype="float16")
