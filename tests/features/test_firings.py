"""The firings of a store, sorted on disk: every code that is not 0 once, in order, for any batch size."""

import numpy as np
import pytest
from held_out import about, dense_codes, harvested, saes

from jhsae.data import Identity, UnitNorm, write_array
from jhsae.errors import UserError
from jhsae.features import firings as firings_module
from jhsae.features import spill
from jhsae.features.firings import first_rows, whole_sequences
from jhsae.features.origin import check_origin


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return harvested(tmp_path_factory.mktemp("held_out"))[0]


def records(sae, normalizer, selection, edges, folder):
    folder.mkdir()
    return list(spill.spilled(sae, normalizer, selection, edges, folder).parts("reading"))


@pytest.mark.few(3)
@pytest.mark.parametrize("name", saes())
def test_every_code_is_there_once_in_order(store, name, tmp_path):
    sae = saes()[name]
    edges = [0, 5, 5 + sae.features // 2, sae.features]
    parts = records(sae, UnitNorm(), whole_sequences(store, None), edges, tmp_path / "spill")
    expected, _ = dense_codes(sae, UnitNorm(), store)
    sequence, position, feature = np.nonzero(expected)
    order = np.lexsort((position, sequence, feature))
    found = np.concatenate(parts)
    assert len(found) > 200
    for key, column in (("feature", feature), ("sequence", sequence), ("position", position)):
        np.testing.assert_array_equal(found[key], column[order])
    np.testing.assert_allclose(found["value"], expected[sequence, position, feature][order], rtol=1e-5)
    for first, last, part in zip(edges[:-1], edges[1:], parts, strict=True):
        assert np.all((part["feature"] >= first) & (part["feature"] < last))


@pytest.mark.parametrize("name", ["tree", "dense_tree", "forest"])
def test_an_atom_comes_with_the_code_of_its_parent(store, name, tmp_path):
    sae = saes()[name]
    (found,) = records(sae, Identity(), whole_sequences(store, None), [0, sae.features], tmp_path / "spill")
    expected, _ = dense_codes(sae, Identity(), store)
    parent = sae.latent_parents()[found["feature"]]
    atom = parent >= 0
    values = np.where(atom, expected[found["sequence"], found["position"], parent], 0)
    assert atom.any() and not atom.all()
    np.testing.assert_allclose(found["parent"], values, rtol=1e-5)


def test_small_batches_and_buffers_give_the_same_records(store, tmp_path, monkeypatch):
    sae, selection = saes()["jump"], whole_sequences(store, 100)
    (whole,) = records(sae, Identity(), selection, [0, sae.features], tmp_path / "whole")
    monkeypatch.setattr(firings_module, "READ_ROWS", 23)
    monkeypatch.setattr(firings_module, "MOST_CODES", 11 * sae.features)
    monkeypatch.setattr(spill, "BUFFER", 50)
    (pieces,) = records(sae, Identity(), selection, [0, sae.features], tmp_path / "pieces")
    for key in ("feature", "sequence", "position"):
        np.testing.assert_array_equal(pieces[key], whole[key])
    np.testing.assert_allclose(pieces["value"], whole["value"], rtol=1e-5, atol=1e-6)


def test_rows_selects_whole_sequences_from_the_first(store):
    sequence = store.index(0, store.rows)[:, 0]
    selection = whole_sequences(store, 50)
    assert selection.rows == np.sum(sequence < selection.sequences) <= 50
    assert np.sum(sequence <= selection.sequences) > 50
    np.testing.assert_array_equal(selection.tokens(), store.tokens()[: selection.sequences])
    everything = whole_sequences(store, None)
    assert (everything.rows, everything.sequences) == (store.rows, store.manifest.sequences)
    assert whole_sequences(store, store.rows) == everything


def test_the_first_rows_are_those_of_the_store(store):
    selection = first_rows(store, 53)
    rows, x, index = (np.concatenate(column) for column in zip(*selection.batches(10), strict=True))
    np.testing.assert_array_equal(rows, np.arange(53))
    np.testing.assert_array_equal(x, store.read(0, 53))
    np.testing.assert_array_equal(index, store.index(0, 53))
    assert first_rows(store, 10**9) == first_rows(store) and selection.rows == 53


def test_rows_out_of_range_are_refused(store):
    for rows in (0, store.rows + 1):
        with pytest.raises(UserError, match=rf"rows is {rows}, but .* holds {store.rows}; write 1 to {store.rows}"):
            whole_sequences(store, rows)
    first = np.sum(store.index(0, store.rows)[:, 0] == 0)
    with pytest.raises(UserError, match=rf"less than one sequence .* write at least {first}$"):
        whole_sequences(store, 1)


def test_a_store_of_another_model_layer_or_width_is_refused(store, tmp_path):
    sae = saes()["topk"]
    check_origin(sae, {"reads": {"model": None, "layer": None}}, store)
    for key, other in (("model", "google/gemma-2-2b"), ("layer", 7)):
        reads = about(store)["reads"] | {key: other}
        with pytest.raises(UserError, match=rf"the SAE reads .*{other}.* harvest held-out text"):
            check_origin(sae, {"reads": reads}, store)
    narrow = write_array(tmp_path / "narrow", np.ones((8, 5), np.float32))
    with pytest.raises(UserError, match=r"the SAE reads vectors of 16 numbers, but .* holds activations of 5"):
        check_origin(sae, about(narrow), narrow)
