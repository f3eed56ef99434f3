"""What a manifest or the description of an array says must be possible, and agree, before any row is read."""

import json

import ml_dtypes
import numpy as np
import pytest
from sealed import sealed

from jhsae.data import Store, manifest, write_array
from jhsae.errors import UserError

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
FIELDS = {
    "format": [0, "3", True, 3.0, 99, None],
    "model": [3, None],
    "layer": ["six", -1, 1.5],
    "tokenizer": [[], "x"],
    "documents": [-1],
    "seed": [-1, "0"],
    "config": [[]],
    "config_hash": [0],
    "dtype": ["float33", "object", 4, "bfloat16"],
    "rows": [0, -40, 10**12, "40", 41],
    "embed": [0, -3, 4, 3.0],
    "sequences": [0, 10**12, 39],
    "context": [0, 2],
    "shard_rows": [0, 10**12, 12],
    "chunk_rows": [0, 4, 3],
    "writers": [[], [0], 1, ["a"]],
    "mean": [[], [1.0, 2.0], "abc", [None, 1.0, 2.0], [[1.0], [2.0], [3.0]], {}],
    "mean_norm": [-1.0, None, "x"],
    "total_variance": [-1.0, False],
    "versions": [[], {"jax": 1}],
    "files": [{}, [], None, {"../x": {"bytes": 1, "sha256": "0" * 64}}],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A store of 40 rows in 3 shards."""
    write_array(tmp_path_factory.mktemp("m") / "s", X, shard_rows=16, chunk_rows=8)
    return tmp_path_factory.getbasetemp() / "m0" / "s"


@pytest.fixture
def rewritten(written):
    """Changes the manifest of the store, which is as it was afterwards."""
    path = written / "manifest.json"
    whole, sums = path.read_text(), (written / "SHA256SUMS").read_text()

    def change(**fields):
        path.write_text(json.dumps(json.loads(whole) | fields))
        return sealed(written)

    yield change
    path.write_text(whole)
    (written / "SHA256SUMS").write_text(sums)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values])
def test_a_field_that_cannot_be_is_refused_before_anything_of_its_size_is_made(rewritten, name, value):
    with pytest.raises(UserError) as refused:
        Store.open(rewritten(**{name: value}))
    assert "manifest" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("change", ["gone", "more", "another size", "letters", "a name that leaves"])
def test_the_list_of_files_is_that_of_the_arrays(written, rewritten, change):
    files = json.loads((written / "manifest.json").read_text())["files"]
    first = "activations/c/0/0"
    changed = {
        "gone": {name: file for name, file in files.items() if name != first},
        "more": files | {"activations/c/3/0": files[first]},
        "another size": files | {first: files[first] | {"bytes": 10**12}},
        "letters": files | {first: files[first] | {"bytes": "many"}},
        "a name that leaves": {("../" + name if name == first else name): file for name, file in files.items()},
    }[change]
    with pytest.raises(UserError, match=r"manifest.json(:| lists| names)"):
        Store.open(rewritten(files=changed))


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", '{"format": 3}', "[" * 2000, '{"format": NaN}', ""])
def test_a_manifest_that_is_none_is_refused(written, rewritten, text):
    rewritten()
    (written / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Store.open(sealed(written))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [41, 3]},
        {"shape": [10**15, 3]},
        {"data_type": "float64"},
        {"fill_value": 7.0},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 3]}}},
        {"codecs": [{"name": "bytes"}]},
        {"codecs": [{"name": "gzip", "configuration": {"level": 1}}]},
        {"chunk_key_encoding": {"name": "v2"}},
        {"zarr_format": 2},
        {"node_type": "group"},
        [],
    ],
    ids=str,
)
def test_an_array_that_is_described_otherwise_is_refused(written, change):
    """The checksums agree with the file, as in a store that somebody made so."""
    path, listed = written / "activations" / "zarr.json", written / "manifest.json"
    whole = path.read_text(), listed.read_text(), (written / "SHA256SUMS").read_text()
    text = json.dumps(json.loads(whole[0]) | change if isinstance(change, dict) else change)
    path.write_text(text)
    about = json.loads(whole[1])
    digest = {line.split("  ")[1]: line[:64] for line in (sealed(written) / "SHA256SUMS").read_text().splitlines()}
    about["files"]["activations/zarr.json"] = {"bytes": len(text), "sha256": digest["activations/zarr.json"]}
    listed.write_text(json.dumps(about))
    try:
        with pytest.raises(UserError, match=r"the array .*activations .*harvest it again") as refused:
            Store.open(sealed(written))
        assert "tensorstore_spec" not in str(refused.value) and "\n" not in str(refused.value)
    finally:
        for file, text in zip((path, listed, written / "SHA256SUMS"), whole, strict=True):
            file.write_text(text)
    Store.open(written)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_rows_of_zeros_are_rows(tmp_path, dtype):
    """Zarr leaves out a chunk of zeros unless it is told not to."""
    x = X.copy()
    x[:30] = 0
    for name, rows in (("some", x), ("all", x * 0), ("one", x[:1]), ("same", np.ones_like(x))):
        store = write_array(tmp_path / f"{name}-{dtype}", rows, dtype=dtype, shard_rows=8, chunk_rows=4)
        got = store.read(0, len(rows))
        order = store.index(0, len(rows))[:, 0]
        expected = rows.astype(ml_dtypes.bfloat16).astype(np.float32) if dtype == "bfloat16" else rows
        np.testing.assert_allclose(got, expected[order], atol=0 if dtype != "int8" else 0.05)
        assert store.tokens().shape == (len(rows), 1)


def test_a_store_of_the_format_before_may_lack_what_is_zero(tmp_path, caplog):
    """Chunks and shards of zeros were not written, and a shard that was not counted 0 bytes in the manifest."""
    folder = tmp_path / "s"
    write_array(folder, X * 0, shard_rows=16, chunk_rows=8)
    about = json.loads((folder / "manifest.json").read_text()) | {"format": 2}
    for name in ("activations/c/0/0", "activations/c/2/0", "tokens/c/1/0"):
        (folder / name).unlink()
        about["files"][name] = {
            "bytes": 0,
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        }
    (folder / "manifest.json").write_text(json.dumps(about))
    (folder / "SHA256SUMS").unlink()
    store = Store.open(folder)
    np.testing.assert_array_equal(store.read(0, 40), X * 0)
    assert "an older version wrote this store" in caplog.text
    (folder / "activations/c/1/0").unlink()
    with pytest.raises(UserError, match="activations/c/1/0 is missing"):
        Store.open(folder)


def test_the_identity_covers_the_statistics_and_a_run_of_before_knows_its_store(written, rewritten):
    store = Store.open(written)
    assert store.is_known_as(store.identity()) and store.is_known_as(store.manifest.identity_of_files())
    assert not store.is_known_as(None) and not store.is_known_as("0" * 64)
    other = Store.open(rewritten(mean=[0.0, 0.0, 0.0]))
    assert not other.is_known_as(store.identity())


def test_the_descriptions_of_the_arrays_of_a_large_store_are_compared_as_well(written, monkeypatch):
    monkeypatch.setattr(manifest, "HASH_ON_OPEN_BYTES", 0)
    path = written / "index" / "zarr.json"
    whole = path.read_text()
    path.write_text(whole.replace("int32", "int16"))
    with pytest.raises(UserError, match=r"the checksum of index/zarr\.json differs"):
        Store.open(written)
    path.write_text(whole)
