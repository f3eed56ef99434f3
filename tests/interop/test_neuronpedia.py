"""A Neuronpedia bundle read back: keys, links, and every number against the dense codes."""

import gzip
import json
from dataclasses import replace
from itertools import pairwise

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from held_out import ATOMS, EXPERTS, FEATURES, about, dense_codes, harvested, saes

from jhsae.data import Identity, Standardize, UnitNorm
from jhsae.errors import UserError
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.interop.neuronpedia.bundle import write
from jhsae.interop.neuronpedia.tables import Dashboard

SMALL = Dashboard(top=4, bins=3, per_bin=2, logits=5, neighbours=3, batch=8, window=10)
# The columns of Neuronpedia's tables Neuron and Activation that its own converter writes.
FEATURE = {
    "modelId", "layer", "index", "sourceSetName", "creatorId", "createdAt", "maxActApprox", "hasVector", "vector",
    "vectorLabel", "vectorDefaultSteerStrength", "hookName", "topkCosSimIndices", "topkCosSimValues",
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices",
    "correlated_features_pearson", "correlated_features_l1", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "decoder_weights_dist",
}  # fmt: skip
ACTIVATION = {
    "id", "tokens", "dataIndex", "index", "layer", "modelId", "dataSource", "maxValue", "maxValueTokenIndex",
    "minValue", "values", "dfaValues", "dfaTargetIndex", "dfaMaxValue", "creatorId", "createdAt", "lossValues",
    "logitContributions", "binMin", "binMax", "binContains", "qualifyingTokenIndex",
}  # fmt: skip
NORMALIZERS = {
    "tree": UnitNorm(),
    "dense_tree": Identity(),
    "forest": Identity(),
    "topk": Standardize(),
    "jump": Identity(),
}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return harvested(tmp_path_factory.mktemp("held_out"))


def lines(folder):
    """Every row of the gzipped files of a folder, in the order of their numbers."""
    files = sorted(folder.glob("batch-*.jsonl.gz"), key=lambda f: int(f.name.split("-")[1].split(".")[0]))
    return [json.loads(line) for file in files for line in gzip.open(file, "rt", encoding="utf-8")]


class Bundle:
    def __init__(self, folder, name, held_out):
        self.store, self.model = held_out
        self.sae, self.normalizer = saes()[name], NORMALIZERS[name].fit(self.store)
        write(folder, self.sae, self.normalizer, about(self.store), self.store, None, self.model, SMALL)
        self.dense, self.rows = dense_codes(self.sae, self.normalizer, self.store)
        self.raw = decoder_in_lm_units(self.sae, self.normalizer, self.store)
        self.folders = sorted((folder / "lm").iterdir(), key=lambda f: ("parents" not in f.name, f.name))
        self.sets = [
            (slice(block.start, block.end), lines(f / "features"), lines(f / "activations"))
            for block, f in zip(self.sae.forest.blocks, self.folders, strict=True)
        ]


@pytest.fixture(scope="module", params=saes())
def bundle(request, held_out, tmp_path_factory):
    return Bundle(tmp_path_factory.mktemp("bundle") / "out", request.param, held_out)


def test_source_sets_and_tables(bundle):
    small = {f"0-small-sae-parents-{EXPERTS}", f"0-small-sae-atoms-{EXPERTS * ATOMS}"}
    deep = {f"0-small-sae-{kind}" for kind in (f"parents-{EXPERTS}", f"level1-{EXPERTS * 2}", f"level2-{EXPERTS * 4}")}
    names = {1: {f"0-small-sae-{FEATURES}"}, 2: small, 3: deep}[len(bundle.sets)]
    assert {f.name for f in bundle.folders} == names
    for folder in bundle.folders:
        row = {n: json.loads((folder / f"{n}.jsonl").read_text()) for n in ("release", "model", "sourceset", "source")}
        assert row["source"]["id"] == folder.name == "0-" + row["source"]["setName"]
        assert row["source"]["setName"] == row["sourceset"]["name"]
        assert row["release"]["name"] == row["sourceset"]["releaseName"]
        assert row["model"]["id"] == row["source"]["modelId"] == row["sourceset"]["modelId"] == "lm"
        assert (row["model"]["layers"], row["model"]["neuronsPerLayer"]) == (2, 24)
        prompts = (row["source"]["num_prompts"], row["source"]["num_tokens_in_prompt"])
        assert prompts == bundle.store.tokens().shape


def test_every_feature_has_one_row_with_every_key(bundle):
    for (own, features, activations), folder in zip(bundle.sets, bundle.folders, strict=True):
        assert [int(f["index"]) for f in features] == list(range(own.stop - own.start))
        assert all(f.keys() == FEATURE and f["layer"] == folder.name for f in features)
        assert all(a.keys() == ACTIVATION and a["layer"] == folder.name for a in activations)
        assert {f["hookName"] for f in features} == {"blocks.0.hook_resid_post"}
        assert len({a["id"] for a in activations}) == len(activations) > 0


def test_statistics_are_those_of_the_codes(bundle):
    for own, features, _ in bundle.sets:
        for f, codes in zip(features, bundle.dense[..., own].reshape(-1, own.stop - own.start).T, strict=True):
            fired = codes[codes != 0]
            assert f["frac_nonzero"] == len(fired) / bundle.rows
            assert sum(f["freq_hist_data_bar_heights"]) == len(fired)
            assert f["maxActApprox"] == pytest.approx(codes.max(), rel=1e-5)
            if len(fired) > 1:
                centres = np.array(f["freq_hist_data_bar_values"])
                mean = centres @ f["freq_hist_data_bar_heights"] / len(fired)
                assert mean == pytest.approx(fired.mean(), abs=float(np.ptp(fired)) / 99)


def test_vectors_logits_and_neighbours_come_from_the_raw_rows(bundle):
    unembedding = np.float64(bundle.model.model.unembedding())
    for own, features, _ in bundle.sets:
        raw = np.float64(bundle.raw[own])
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        np.testing.assert_allclose([f["vector"] for f in features], raw, rtol=1e-5)
        logits = raw @ unembedding.T
        np.testing.assert_allclose([f["pos_values"] for f in features], -np.sort(-logits)[:, :5], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose([f["neg_values"] for f in features], np.sort(logits)[:, :5], rtol=1e-4, atol=1e-5)
        for i, f in enumerate(features):
            assert f["pos_str"][0] == bundle.model.tokenizer.convert_ids_to_tokens(int(logits[i].argmax()))
            assert sum(f["logits_hist_data_bar_heights"]) == len(unembedding)
            others = np.delete(unit @ unit[i], i)
            np.testing.assert_allclose(f["topkCosSimValues"], -np.sort(-others)[:3], atol=1e-5)
            np.testing.assert_allclose(unit[f["topkCosSimIndices"]] @ unit[i], f["topkCosSimValues"], atol=1e-5)
            assert f["neuron_alignment_indices"][0] == raw[i].argmax()


def test_parents_and_atoms_are_linked_both_ways(bundle):
    if len(bundle.sets) == 1:
        assert all(f["correlated_features_indices"] == [] for f in bundle.sets[0][1])
        return
    (_, parents, _), (_, atoms, _) = bundle.sets[:2]
    flat = bundle.dense.reshape(-1, bundle.sae.features)
    above = bundle.sae.latent_parents()
    for (upper, _, _), (own, rows, _) in pairwise(bundle.sets):
        linked = {(p, a) for a, f in enumerate(rows) for p in f["correlated_features_indices"]}
        together = [a for a in range(own.start, own.stop) if flat[:, a] @ flat[:, above[a]]]
        assert linked == {(above[a] - upper.start, a - own.start) for a in together}
    down = {(p, a) for p, f in enumerate(parents) for a in f["correlated_features_indices"]}
    assert down == {(p, a) for a, f in enumerate(atoms) for p in f["correlated_features_indices"]}
    index = bundle.store.index(0, bundle.store.rows)
    flat = np.float64(flat[index[:, 0] * bundle.store.manifest.context + index[:, 1]])
    for parent, f in enumerate(parents):
        numbers = (f["correlated_features_indices"], f["correlated_features_pearson"], f["correlated_features_l1"])
        for atom, pearson, cosine in zip(*numbers, strict=True):
            p, a = flat[:, parent], flat[:, EXPERTS + atom]
            assert pearson == pytest.approx(np.corrcoef(p, a)[0, 1], abs=1e-5)
            assert cosine == pytest.approx(p @ a / np.linalg.norm(p) / np.linalg.norm(a), abs=1e-5)
            back = atoms[atom]
            assert [pearson], [cosine] == (back["correlated_features_pearson"], back["correlated_features_l1"])


def test_examples_are_sequences_with_their_codes(bundle):
    words = bundle.model.tokenizer.convert_ids_to_tokens
    texts = [words(row.tolist()) for row in bundle.store.tokens().astype(int)]
    for own, _, activations in bundle.sets:
        for a in activations:
            codes = bundle.dense[..., own.start + int(a["index"])]
            values = np.array(a["values"])
            assert any(
                a["tokens"] == text and np.allclose(values, row, rtol=1e-4, atol=1e-6)
                for text, row in zip(texts, codes, strict=True)
            )
            assert values[a["maxValueTokenIndex"]] == a["maxValue"] == values.max() and a["minValue"] == values.min()
            here = values[a["qualifyingTokenIndex"]]
            if a["binContains"] == -1:
                assert (a["binMin"], here) == (-1, a["maxValue"]) and a["binMax"] == pytest.approx(codes.max())
                continue
            assert a["binMin"] * 0.9999 < here <= a["binMax"] * 1.0001
            inside = np.sum((codes > a["binMin"]) & (codes <= a["binMax"] * (1 + 1e-6)))
            assert a["binContains"] == pytest.approx(inside / bundle.rows, abs=1.5 / bundle.rows)


def test_top_examples_are_the_most_active_sequences(bundle):
    for own, features, activations in bundle.sets:
        for f in features:
            best = -np.sort(-bundle.dense[..., own.start + int(f["index"])].max(axis=1))[:4]
            top = [a["maxValue"] for a in activations if a["index"] == f["index"] and a["binContains"] == -1]
            np.testing.assert_allclose(top, best[best > 0], rtol=1e-5)


def test_l0_of_the_bundle_is_that_of_the_sae(bundle):
    l0 = sum(f["frac_nonzero"] for _, features, _ in bundle.sets for f in features)
    x = bundle.normalizer(jnp.asarray(bundle.store.read(0, bundle.store.rows)))[0]
    assert l0 == pytest.approx(np.mean(np.asarray(bundle.sae.encode(x).l0())))


def test_a_short_window_surrounds_its_token_and_vectors_can_be_left_out(held_out, tmp_path):
    store, model = held_out
    sae = saes()["topk"]
    short = replace(SMALL, window=4, vectors=False, release="My Release")
    write(tmp_path / "out", sae, Identity(), about(store), store, 100, model, short)
    folder = tmp_path / "out" / "lm" / f"0-small-sae-{FEATURES}"
    codes, _ = dense_codes(sae, Identity(), store)
    for a in lines(folder / "activations"):
        assert len(a["tokens"]) == len(a["values"]) == 4 and 0 <= a["qualifyingTokenIndex"] < 4
        windows = np.lib.stride_tricks.sliding_window_view(codes[..., int(a["index"])], 4, axis=1)
        assert np.isclose(windows, a["values"], rtol=1e-4, atol=1e-6).all(axis=-1).any()
    assert all(f["vector"] == [] and not f["hasVector"] and f["hookName"] is None for f in lines(folder / "features"))
    assert json.loads((folder / "release.jsonl").read_text())["name"] == "my-release"


def test_features_that_never_fire_have_a_row_and_no_examples(held_out, tmp_path):
    store, model = held_out
    sae = saes()["jump"]
    dead = eqx.tree_at(lambda s: s.b_enc, sae, sae.b_enc.at[:8].set(-1e6))
    write(tmp_path / "out", dead, Identity(), about(store), store, None, model, SMALL)
    folder = tmp_path / "out" / "lm" / f"0-small-sae-{FEATURES}"
    assert {p.name for p in (folder / "activations").iterdir()} == {"batch-1.jsonl.gz", "batch-2.jsonl.gz"}
    features = lines(folder / "features")
    assert len(features) == FEATURES
    for f in features[:8]:
        assert f["frac_nonzero"] == f["maxActApprox"] == 0 and f["freq_hist_data_bar_heights"] == []


def test_two_writes_differ_in_the_time_alone(held_out, tmp_path):
    store, model = held_out
    found = []
    for name in ("one", "two"):
        write(tmp_path / name, saes()["tree"], UnitNorm(), about(store), store, 100, model, SMALL)
        rows = [row for f in sorted((tmp_path / name).rglob("*s")) if f.is_dir() for row in lines(f)]
        found.append([{k: v for k, v in row.items() if k != "createdAt"} for row in rows])
    assert found[0] == found[1] and len(found[0]) > 50


def test_bad_input_is_refused_and_nothing_is_written(held_out, tmp_path):
    store, model = held_out
    sae, out = saes()["topk"], tmp_path / "out"
    with pytest.raises(UserError, match=r"the SAE reads other layer 1, but"):
        write(out, sae, Identity(), {"name": "a", "reads": {"model": "other", "layer": 1}}, store, None, model)
    with pytest.raises(UserError, match=r"lm is embedded, but .* was harvested from"):
        write(out, sae, Identity(), about(store), store, None, replace(model, name="embedded", sha256="0" * 64))
    with pytest.raises(UserError, match="rows is 100000, but"):
        write(out, sae, Identity(), about(store), store, 100_000, model)
    with pytest.raises(UserError, match="batch is 0, expected at least 1"):
        replace(SMALL, batch=0)
    assert not list(tmp_path.iterdir())
