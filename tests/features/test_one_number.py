"""One SAE has one number for each quantity: in results.jsonl, report, browser page, Neuronpedia, Delphi and Python."""

import gzip
import json
import re
from functools import cached_property

import equinox as eqx
import jax
import numpy as np
import pytest
import report_files
from browser import pages
from held_out import harvested
from safetensors.numpy import load_file

from jhsae import config as cfg
from jhsae import evals
from jhsae.commands import browse, evaluate, export, report
from jhsae.data import AbstractNormalizer
from jhsae.features.decoder import decoder_in_lm_units, feature_logits
from jhsae.features.firings import firing_table
from jhsae.features.latents import density, latent_statistics
from jhsae.features.token_text import token_text
from jhsae.sae import AbstractSAE, HierarchicalSAE
from jhsae.training.checkpoint import save_sae

FLAT = {
    "_target_": "jhsae.sae.FlatSAE", "embed": 16, "features": 20,
    "sparsifier": {"_target_": "jhsae.sparsify.JumpReLU", "initial": 0.3},
}  # fmt: skip
TREE = {
    "_target_": "jhsae.sae.HierarchicalSAE", "embed": 16, "experts": 12, "sub": 3, "atoms": 4,
    "route": {"_target_": "jhsae.sparsify.OffsetTopK", "k": 3, "offset": 0.02},
    "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1}, "biases": ["encoder"],
}  # fmt: skip
UNIT_NORM = {"_target_": "jhsae.data.UnitNorm"}
LOGITS = 4
THREE, SIX = 5.1e-3, 5.1e-6  # relative error of 3 and of 6 significant digits


class Made:
    """An evaluated run, its pages and exports, read back, and `python`: the same numbers from the functions."""

    def __init__(self, folder, name, slot):
        self.store, self.model = harvested(folder)
        self.name = name
        sae = cfg.build(slot, AbstractSAE, key=jax.random.key(1))
        self.sae = eqx.tree_at(lambda s: s.b_enc, sae, sae.b_enc.at[1:3].set(-100.0))  # these never fire
        self.normalizer = cfg.build(UNIT_NORM, AbstractNormalizer).fit(self.store)
        self.run = folder / name
        report_files.write_run(folder, name, {"ev_r2": 0.0})
        (self.run / "timing.jsonl").unlink()
        reads = {"model": self.model.name, "layer": self.store.manifest.layer}
        about = {"name": name, "config_hash": "aa", "commit": "c0ffee", "reads": reads}
        save_sae(self.run / "sae", self.sae, slot, UNIT_NORM, self.normalizer, about)
        run, store, lm = str(self.run), self.store.path, str(folder / "lm")
        evaluate.run(evaluate.Evaluate(run, store, lm))
        self.page = folder / "browse.html"
        browse.run(browse.Browse(run, store, str(self.page), lm, logits=LOGITS))
        self.report = folder / "report" / "report.html"
        report.run(report.Report([run], str(self.report)))
        for kind in ("neuronpedia", "delphi"):
            export.run(export.Export(run, kind, str(folder / kind), store, lm=lm))
        self.folder = folder

    @cached_property
    def metrics(self):
        """The newest row of results.jsonl."""
        return json.loads((self.run / "results.jsonl").read_text().splitlines()[-1])["metrics"]

    @cached_property
    def contexts(self):
        """The entries of contexts.json, by feature; those of atoms too."""
        entries = json.loads((self.run / "contexts.json").read_text())
        return {one["feature"]: one for entry in entries for one in (entry, *entry["atoms"])}

    @cached_property
    def browser(self):
        """The data of the page, and its latents by feature."""
        data = pages.Page(self.page.read_text()).data
        return data, {self.feature(latent["id"]): latent for latent in data["latents"]}

    def feature(self, name):
        first, *atom = [int(number) for number in re.findall(r"\d+", name)]
        return self.sae.experts + first * self.sae.atoms + atom[0] if atom else first

    @cached_property
    def neuronpedia(self):
        """The feature rows of the bundle, parents before atoms."""
        folders = sorted((self.folder / "neuronpedia" / "lm").iterdir(), key=lambda f: "atoms" in f.name)
        return [
            json.loads(line)
            for f in folders
            for line in gzip.open(f / "features" / "batch-0.jsonl.gz", "rt").readlines()
        ]

    @cached_property
    def delphi(self):
        """(feature, value) of every firing."""
        (folder,) = (self.folder / "delphi").iterdir()
        features, values = [], []
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            features.append(tensors["locations"][:, 2].astype(int) + int(file.stem.split("_")[0]))
            values.append(tensors["activations"].astype(float))
        return np.concatenate(features), np.concatenate(values)

    @cached_property
    def python(self):
        """Metrics, frequency, statistics, decoder rows and logits."""
        x = self.store.read(0, self.store.rows)
        metrics, frequency = evals.fidelity(self.sae, self.normalizer, [x], self.store.manifest.mean)
        table = firing_table(self.sae, self.normalizer, self.store, self.store.rows)
        rows = decoder_in_lm_units(self.sae, self.normalizer, self.store)
        logits = feature_logits(rows, self.model.model.unembedding(), LOGITS)
        return metrics, frequency, latent_statistics(table), rows, logits


@pytest.fixture(scope="module", params=["flat", "tree"])
def made(request, tmp_path_factory):
    slot = {"flat": FLAT, "tree": TREE}[request.param]
    return Made(tmp_path_factory.mktemp(request.param), request.param, slot)


def test_frequency_and_density(made):
    metrics, frequency, statistics, _, _ = made.python
    assert 0 < np.sum(frequency == 0) < len(frequency) and metrics["density"] == density(frequency)
    assert made.metrics["density"] == metrics["density"]
    np.testing.assert_allclose(statistics.frequency, frequency)
    np.testing.assert_allclose([row["frac_nonzero"] for row in made.neuronpedia], frequency)
    data, latents = made.browser
    assert set(latents) == set(np.flatnonzero(frequency))
    for i, latent in latents.items():
        assert latent["fired"] / data["rows"] == pytest.approx(frequency[i])
    for i, entry in made.contexts.items():
        assert entry["frequency"] == pytest.approx(frequency[i])
    np.testing.assert_array_equal(np.bincount(made.delphi[0], minlength=len(frequency)), statistics.fired)
    assert all(one["log10_edges"] == metrics["density"]["log10_edges"] for one in data["density"])
    np.testing.assert_array_equal(np.sum([one["counts"] for one in data["density"]], 0), metrics["density"]["counts"])
    assert sum(one["dead"] for one in data["density"]) == np.sum(frequency == 0)
    live = f"which alone are drawn: {made.name} {np.sum(frequency > 0)}."
    shown = report_files.Page(made.report.read_text()).text
    assert live in shown and all(f"{100 * one['frequency']:.3g}%" in shown for one in made.contexts.values())


def test_largest_activation(made):
    _, _, statistics, _, _ = made.python
    features, values = made.delphi
    for i, latent in made.browser[1].items():
        assert latent["high"] == pytest.approx(statistics.high[i], rel=THREE)
        assert values[features == i].max() == pytest.approx(statistics.high[i], rel=1e-3)  # float16
    np.testing.assert_allclose([row["maxActApprox"] for row in made.neuronpedia], statistics.high, rtol=SIX)
    assert len(made.contexts) > 8
    for i, entry in made.contexts.items():
        assert entry["contexts"][0]["value"] == pytest.approx(statistics.high[i], rel=1e-5)


def test_decoder_norms_and_logits(made):
    _, _, _, rows, logits = made.python
    norms = np.linalg.norm(rows, axis=1)
    bare = np.linalg.norm(np.asarray(made.sae.dictionary()), axis=1)
    scale = np.median(np.linalg.norm(made.store.read(0, made.store.rows), axis=1))
    np.testing.assert_allclose(norms, scale * bare, rtol=1e-4)
    assert scale > 2, "a row as it is in the dictionary would be another number"
    vocabulary = token_text(made.model.tokenizer, range(made.model.model.vocab))
    data, latents = made.browser
    for i, row in enumerate(made.neuronpedia):
        np.testing.assert_allclose(row["vector"], rows[i], rtol=SIX, atol=1e-9)
        ends = {"pos": (logits.top_ids[i], logits.top[i]), "neg": (logits.bottom_ids[i], logits.bottom[i])}
        for end, (ids, values) in ends.items():
            assert row[f"{end}_str"][:LOGITS] == [vocabulary[t] for t in ids]
            np.testing.assert_allclose(row[f"{end}_values"][:LOGITS], values, rtol=SIX)
    for i, latent in latents.items():
        assert latent["norm"] == pytest.approx(norms[i], rel=THREE)
        ends = {"top": (logits.top_ids[i], logits.top[i]), "bottom": (logits.bottom_ids[i], logits.bottom[i])}
        for end, (ids, values) in ends.items():
            assert [data["pieces"][t] for t, _ in latent[end]] == [vocabulary[t] for t in ids]
            np.testing.assert_allclose([value for _, value in latent[end]], values, rtol=THREE)


def test_l0_and_explained_variance(made):
    metrics, _, _, _, _ = made.python
    page = report_files.Page(made.report.read_text())
    for key in ("l0", "ev_r2", "mse", "dead"):
        assert made.metrics[key] == pytest.approx(metrics[key], rel=1e-6)
        assert {float(value) for value in page.values(key)} == {made.metrics[key]}
    rows = made.store.rows
    assert sum(row["frac_nonzero"] for row in made.neuronpedia) == pytest.approx(metrics["l0"])
    assert sum(latent["fired"] for latent in made.browser[1].values()) / rows == pytest.approx(metrics["l0"])
    assert len(made.delphi[0]) / rows == pytest.approx(metrics["l0"])
    if isinstance(made.sae, HierarchicalSAE):
        parents = sum(row["frac_nonzero"] for row in made.neuronpedia[: made.sae.experts])
        assert parents == pytest.approx(metrics["l0_parents"])


def test_the_last_lines_quote_them(made, capsys):
    evaluate.run(evaluate.Evaluate(str(made.run), made.store.path, str(made.folder / "lm")))  # finished: only says so
    line = capsys.readouterr().out.splitlines()[-1]
    metrics = made.metrics
    numbers = (
        f"explained variance {metrics['ev_r2']:.4g}, CE recovered {metrics['ce_recovered']:.4g}, L0 {metrics['l0']:.4g}"
    )
    assert line.startswith(f"{made.run}: {numbers}, ")
    assert f"; next: jhsae browse run={made.run} store={made.store.path}" in line
    report.run(report.Report([str(made.run)], str(made.report)))
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"highest explained variance {metrics['ev_r2']:.4g} ({made.name})" in line
    assert line.endswith(f"; next: python -m webbrowser {made.report}")
