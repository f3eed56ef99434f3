"""Rows as 8-bit integers: how near they come back, in memory and through a store."""

import json
from itertools import islice

import ml_dtypes
import numpy as np
import pytest

from jhsae.data import Standardize, Store, make_loader, write_array
from jhsae.data.storage import Channels, Integers, Plain

RNG = np.random.default_rng(0)
SCALES = np.array([1, 2, 3, 400, 1, 5, 0.01, 1], np.float32)
X = (RNG.normal(size=(600, 8)) * SCALES * RNG.lognormal(size=(600, 1)) + 10 * SCALES).astype(np.float32)


def integers() -> Integers:
    return Integers(Channels.of(X))


def test_the_error_of_a_row_is_half_a_step_of_its_own_scale_in_every_standardised_channel():
    storage = integers()
    q, scale = storage.encode(X)
    assert q.dtype == np.int8 and scale.shape == (600, 1) and (np.abs(q).max(axis=1) == 127).all()
    z = (X - storage.channels.mean) / storage.channels.std
    np.testing.assert_allclose(scale[:, 0], np.abs(z).max(axis=1) / 127, rtol=1e-6)
    error = (storage.decode(q, scale) - X) / storage.channels.std
    assert (np.abs(error) <= scale * 0.5 + 1e-5).all()


def test_a_large_channel_costs_the_small_ones_nothing():
    storage = integers()
    error = storage.decode(*storage.encode(X)) - X
    relative = np.sqrt((error**2).mean(axis=0)) / X.std(axis=0)
    assert relative.max() < 0.02 and relative.max() < 2 * relative.min()


def test_a_constant_channel_and_a_row_at_the_mean_are_exact():
    x = np.stack([np.full(4, 3.0), np.array([1.0, 2, 3, 4])], axis=1).astype(np.float32)
    storage = Integers(Channels.of(x))
    assert storage.channels.std[0] == 1
    at_mean = storage.channels.mean[None]
    np.testing.assert_array_equal(storage.decode(*storage.encode(at_mean)), at_mean)
    np.testing.assert_allclose(storage.decode(*storage.encode(x)), x, rtol=1e-6)


def test_plain_storage_is_the_rows():
    (stored,) = Plain("bfloat16").encode(X)
    np.testing.assert_array_equal(Plain("bfloat16").decode(stored), X.astype(ml_dtypes.bfloat16))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write_array(tmp_path_factory.mktemp("int8") / "s", X, dtype="int8", shard_rows=128, chunk_rows=32)


def test_a_store_of_integers_gives_float32_rows_everywhere(store):
    order = store.index(0, 600)[:, 0]
    expected = integers().decode(*integers().encode(X))[order]
    assert store.manifest.dtype == "int8" and store.read(0, 600).dtype == np.float32
    np.testing.assert_allclose(store.read(0, 600), expected, rtol=1e-6, atol=1e-6)
    served = np.concatenate(list(islice(make_loader(store, 100, 0), 6)))
    assert served.dtype == np.float32
    np.testing.assert_array_equal(np.sort(served, axis=0), np.sort(store.read(0, 600), axis=0))
    np.testing.assert_allclose(Standardize().fit(store).std, X.std(axis=0), rtol=1e-2)


def test_statistics_are_those_of_the_rows_as_they_read_back(store):
    np.testing.assert_allclose(store.manifest.mean, store.read(0, 600).astype(np.float64).mean(axis=0), rtol=1e-12)


def test_it_takes_about_a_quarter_of_the_room(tmp_path):
    x = RNG.normal(size=(2048, 256)).astype(np.float32)
    sizes = {}
    for dtype in ("float32", "int8"):
        files = write_array(tmp_path / dtype, x, dtype=dtype).manifest.files
        sizes[dtype] = sum(file["bytes"] for name, file in files.items() if not name.startswith(("index", "tokens")))
    assert sizes["int8"] < 0.27 * sizes["float32"]


def test_stores_of_the_format_before_are_still_read(tmp_path):
    store = write_array(tmp_path / "s", X)
    path = tmp_path / "s" / "manifest.json"
    old = json.loads(path.read_text()) | {"format": 1}
    assert old.pop("writers") == [1]
    path.write_text(json.dumps(old))
    (tmp_path / "s" / "SHA256SUMS").unlink()
    again = Store.open(tmp_path / "s")
    assert again.manifest.writers == [1] and again.manifest.format == 1
    np.testing.assert_array_equal(again.read(0, 600), store.read(0, 600))
