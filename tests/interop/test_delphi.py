"""Delphi's cache read back by the rules of its loader: start added, grouped by latent, positions in order."""

import json
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from held_out import about, dense_codes, harvested, saes
from safetensors.numpy import load_file

from jhsae.data import Identity, Standardize, UnitNorm, write_array
from jhsae.errors import UserError
from jhsae.interop import delphi
from jhsae.sae import FlatSAE
from jhsae.sparsify import ReLU


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return harvested(tmp_path_factory.mktemp("held_out"))[0]


def read(folder):
    """Latent -> (locations [n, 2], activations [n]), in the order of the files; tokens; all location dtypes."""
    latents, tokens, dtypes = {}, None, set()
    for file in sorted(folder.glob("*.safetensors"), key=lambda f: int(f.stem.split("_")[0])):
        start, end = map(int, file.stem.split("_"))
        tensors = load_file(file)
        dtypes.add(tensors["locations"].dtype)
        locations = tensors["locations"].astype(np.int64)
        locations[:, 2] += start
        assert np.all((locations[:, 2] >= start) & (locations[:, 2] <= end))
        assert tensors["activations"].dtype == np.float16
        assert tokens is None or np.array_equal(tokens, tensors["tokens"])
        tokens = tensors["tokens"]
        for latent in np.unique(locations[:, 2]):
            own = locations[:, 2] == latent
            assert int(latent) not in latents
            latents[int(latent)] = (locations[own, :2], tensors["activations"][own])
    return latents, tokens, dtypes


@pytest.mark.few(4)
@pytest.mark.parametrize("normalizer", [Identity(), UnitNorm(), Standardize()], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("name", saes())
def test_the_cache_holds_every_code_once_at_its_token(store, name, normalizer, tmp_path):
    sae, normalizer = saes()[name], normalizer.fit(store)
    delphi.write(tmp_path / "latents", sae, normalizer, about(store), store, splits=3)
    expected, rows = dense_codes(sae, normalizer, store)
    latents, tokens, dtypes = read(tmp_path / "latents" / "layers.0")
    assert dtypes == {np.dtype(np.uint16)}
    np.testing.assert_array_equal(tokens, store.tokens())
    found = np.zeros(expected.shape, np.float32)
    for latent, (where, values) in latents.items():
        flat = where[:, 0] * tokens.shape[1] + where[:, 1]
        assert np.all(np.diff(flat) > 0)  # Delphi groups neighbours, so that a token may stand there once, in order
        found[where[:, 0], where[:, 1], latent] = values
    np.testing.assert_array_equal(found != 0, expected != 0)
    np.testing.assert_allclose(found, expected, rtol=2**-10, atol=1e-6)
    l0 = np.mean(np.asarray(sae.encode(normalizer(jnp.asarray(store.read(0, store.rows)))[0]).l0()))
    assert sum(len(values) for _, values in latents.values()) / rows == pytest.approx(l0)


def test_every_token_of_a_location_is_that_of_the_store(store, tmp_path):
    delphi.write(tmp_path / "latents", saes()["tree"], Identity(), about(store), store)
    latents, tokens, _ = read(tmp_path / "latents" / "layers.0")
    known = {(s, p): t for s, p, t in store.index(0, store.rows).tolist()}
    for where, _ in latents.values():
        assert all(tokens[s, p] == known[s, p] for s, p in where.tolist())


def test_config_and_files_are_what_the_loader_looks_for(store, tmp_path):
    sae = saes()["tree"]
    delphi.write(tmp_path / "latents", sae, Identity(), about(store), store, rows=100, splits=4)
    target = tmp_path / "latents" / "layers.0"
    assert [p.name for p in (tmp_path / "latents").iterdir()] == ["layers.0"]
    config = json.loads((target / "config.json").read_text())
    _, tokens, _ = read(target)
    assert config["model_name"] == store.manifest.model
    assert config["cache_ctx_len"] == config["ctx_len"] == tokens.shape[1] == 10
    assert config["n_tokens"] == tokens.size and config["n_splits"] == 4
    assert {"dataset_repo", "dataset_split", "dataset_name", "dataset_column", "batch_size"} <= config.keys()
    ranges = sorted(tuple(map(int, f.stem.split("_"))) for f in target.glob("*.safetensors"))
    assert ranges[0][0] == 0 and ranges[-1][1] == sae.features - 1
    assert all(a[1] + 1 == b[0] for a, b in pairwise(ranges))


def test_a_range_in_which_nothing_fires_is_an_empty_file(store, tmp_path):
    sae = saes()["jump"]
    sae = eqx.tree_at(lambda s: s.b_enc, sae, sae.b_enc.at[:10].set(-1e6))
    delphi.write(tmp_path / "latents", sae, Identity(), about(store), store, splits=2)
    empty = load_file(tmp_path / "latents" / "layers.0" / "0_9.safetensors")
    assert empty["locations"].shape == (0, 3) and empty["activations"].shape == (0,)
    assert read(tmp_path / "latents" / "layers.0")[0].keys() <= set(range(10, 20))


def test_more_sequences_than_16_bits_are_counted_in_32(tmp_path):
    x = np.random.default_rng(0).normal(size=(2**16 + 9, 2)).astype(np.float32)
    many = write_array(tmp_path / "many", x)
    sae = FlatSAE(2, 4, ReLU(), key=jax.random.key(0))
    origin = {"name": "a", "reads": {"model": "array", "layer": 0}}
    delphi.write(tmp_path / "latents", sae, Identity(), origin, many, splits=2)
    latents, tokens, dtypes = read(tmp_path / "latents" / "layers.0.input")
    assert dtypes == {np.dtype(np.uint32)} and len(tokens) == 2**16 + 9
    expected, _ = dense_codes(sae, Identity(), many)
    assert {i: len(v) for i, (_, v) in latents.items()} == dict(enumerate((expected != 0).sum(axis=(0, 1))))
    assert max(where[:, 0].max() for where, _ in latents.values()) >= 2**16


def test_codes_outside_float16_stay_active_or_are_refused(store, tmp_path):
    sae = FlatSAE(16, 6, ReLU(), key=jax.random.key(0))
    tiny = eqx.tree_at(lambda s: s.W_enc, sae, sae.W_enc * 1e-9)
    delphi.write(tmp_path / "tiny", tiny, Identity(), about(store), store)
    latents, _, _ = read(tmp_path / "tiny" / "layers.0")
    expected, _ = dense_codes(tiny, Identity(), store)
    assert sum(np.count_nonzero(values) for _, values in latents.values()) == np.count_nonzero(expected) > 0
    huge = eqx.tree_at(lambda s: s.W_enc, sae, sae.W_enc * 1e6)
    with pytest.raises(UserError, match=r"Delphi stores float16, up to 65504"):
        delphi.write(tmp_path / "huge", huge, Identity(), about(store), store)
    assert not (tmp_path / "huge").exists()


def test_bad_input_is_refused_and_nothing_is_written(store, tmp_path):
    sae, out = saes()["topk"], tmp_path / "latents"
    other = {"name": "a", "reads": {"model": "google/gemma-2-2b", "layer": 1}}
    with pytest.raises(UserError, match=r"the SAE reads google/gemma-2-2b layer 1, but"):
        delphi.write(out, sae, Identity(), other, store)
    for splits in (0, 21):
        with pytest.raises(UserError, match=rf"splits is {splits}, but the SAE has 20 features"):
            delphi.write(out, sae, Identity(), about(store), store, splits=splits)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(UserError, match="exists already"):
        delphi.write(out, sae, Identity(), about(store), store)
