"""``jhsae export``: every format from the command line, the L0 on screen, and nothing written for bad input."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from held_out import harvested
from safetensors.numpy import load_file

import jhsae
from jhsae import config as cfg
from jhsae.__main__ import main
from jhsae.commands import export
from jhsae.commands.export import Export
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.files.checksums import NAME
from jhsae.interop import hub
from jhsae.sae import AbstractSAE
from jhsae.training.checkpoint import save_sae

FLAT = {"_target_": "jhsae.sae.FlatSAE", "embed": 16, "features": 24}
FLAT |= {"sparsifier": {"_target_": "jhsae.sparsify.ReLU"}}
TREE = {"_target_": "jhsae.sae.HierarchicalSAE", "embed": 16, "experts": 8, "sub": 2, "atoms": 3}
TREE |= {"route": {"_target_": "jhsae.sparsify.TopK", "k": 3}, "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1}}
SCALED = {"_target_": "jhsae.data.CenterScale"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a held-out store and the runs flat and tree."""
    folder = tmp_path_factory.mktemp("export")
    store, model = harvested(folder)
    reads = {"model": model.name, "layer": store.manifest.layer}
    for name, slot in (("flat", FLAT), ("tree", TREE)):
        about = {"name": name, "config_hash": "0123456789ab", "commit": "abcdef", "reads": reads}
        sae, normalizer = (
            cfg.build(slot, AbstractSAE, key=jax.random.key(0)),
            cfg.build(SCALED, AbstractNormalizer).fit(store),
        )
        save_sae(folder / name / "sae", sae, slot, SCALED, normalizer, about)
    return folder


def words(place: Path, run: str, kind: str, out: Path, *more: str) -> list[str]:
    return ["export", f"run={place / run}", f"format={kind}", f"out={out}", *more]


def test_saelens_with_the_l0_before_and_after_and_the_frequencies(place, tmp_path, capsys):
    assert main(words(place, "flat", "saelens", tmp_path / "out", f"store={place / 'store'}", "rows=200")) == 0
    printed = capsys.readouterr().out
    before, after = re.search(r"L0 ([\d.]+) before the export, ([\d.]+) read back", printed).groups()
    sae, normalizer, _ = jhsae.load_sae(place / "flat")
    x = jhsae.Store.open(place / "store").read(0, 200)
    codes = sae.encode(normalizer(jnp.asarray(x))[0])
    assert float(before) == float(after) == pytest.approx(float(codes.l0().mean()), abs=1e-4)
    sparsity = load_file(tmp_path / "out" / "sparsity.safetensors")["sparsity"]
    np.testing.assert_allclose(10.0**sparsity, np.asarray(codes.fired()) / 200, atol=1e-6)
    assert 3 < float(before) < 21


def test_saelens_without_a_store_measures_nothing(place, tmp_path, capsys):
    export.run(Export(str(place / "flat"), "saelens", str(tmp_path / "out")))
    (line,) = capsys.readouterr().out.splitlines()
    made, following = line.split("; next: ")
    assert made == f"{tmp_path / 'out'}: saelens, 24 features over 16 dimensions"
    assert following.startswith("python -c") and str(tmp_path / "out") in following
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [NAME, "cfg.json", "sae_weights.safetensors"]


def test_torch_with_the_l0_before(place, tmp_path, capsys):
    assert main(words(place, "tree", "torch", tmp_path / "out", f"store={place / 'store'}")) == 0
    sae, normalizer, _ = jhsae.load_sae(place / "tree")
    store = jhsae.Store.open(place / "store")
    l0 = float(sae.encode(normalizer(jnp.asarray(store.read(0, store.rows)))[0]).l0().mean())
    assert f"L0 {l0:.4f} before the export" in capsys.readouterr().out
    assert (tmp_path / "out" / "hsae.py").exists()


def test_torch_says_whether_text_opens_with_bos(place, tmp_path, monkeypatch):
    """By the store that is given, else by the one that the SAE was trained on, where it still is; SAELens's default."""
    store = jhsae.Store.open(place / "store")
    _, _, about = jhsae.load_sae(place / "tree")
    trained_on = about | {"store": {"path": str(place / "store"), "sha256": store.identity()}}
    found = []
    for first in (None, 2):
        monkeypatch.setitem(store.manifest.tokenizer, "first", first)
        monkeypatch.setattr(export.Store, "open", lambda path: store)
        for number, known in enumerate((about, trained_on)):
            monkeypatch.setattr(export, "load_sae", lambda run, trust, to=known: (*jhsae.load_sae(run)[:2], to))
            out = tmp_path / f"{first}-{number}"
            export.run(Export(str(place / "tree"), "torch", str(out)))
            found.append(json.loads((out / "cfg.json").read_text())["metadata"]["prepend_bos"])
    assert found == [True, False, True, True]


@pytest.mark.parametrize(("kind", "file"), [("delphi", "**/*.safetensors"), ("neuronpedia", "**/*")])
@pytest.mark.parametrize("run", ["flat", "tree"])
def test_formats_made_of_codes(place, tmp_path, run, kind, file):
    assert main(words(place, run, kind, tmp_path / "out", f"store={place / 'store'}", "rows=100")) == 0
    assert any(path.is_file() for path in (tmp_path / "out").glob(file))


def test_a_folder_to_share_loads_by_the_lines_of_its_readme(place, tmp_path, monkeypatch):
    metrics = {"l0": 3.0, "ev_r2": 0.51234, "rows": 250, "dead": 0.25}
    row = {"evaluation": {"store": "stores/heldout", "commit": "fedcba"}, "metrics": metrics}
    (place / "flat" / "results.jsonl").write_text(json.dumps({"old": 1}) + "\n" + json.dumps(row) + "\n")
    assert main(words(place, "flat", "folder", tmp_path / "out")) == 0
    (place / "flat" / "results.jsonl").unlink()
    text = (tmp_path / "out" / "README.md").read_text()
    for part in ("sparsifier=ReLU()", "CenterScale()", "`0123456789ab`", "250 tokens of `stores/heldout`", "`fedcba`"):
        assert part in text
    assert "- L0: 3\n" in text and "(centred R²): 0.5123" in text and "recovered" not in text
    x = jhsae.Store.open(place / "store").read(0, 8)
    lines = {"x": x}
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], lines)
    sae, normalizer, about = jhsae.load_sae(place / "flat")
    inside, token = normalizer(jnp.asarray(x))
    np.testing.assert_array_equal(lines["x_hat"], normalizer.undo(sae(inside), token))
    assert lines["about"] == about
    names = {NAME, "README.md", "sae.json", "sae.safetensors", "normalizer.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_a_folder_without_an_evaluation_quotes_no_numbers(place, tmp_path):
    export.run(Export(str(place / "tree"), "folder", str(tmp_path / "out")))
    assert "Measured" not in (tmp_path / "out" / "README.md").read_text()


def test_what_is_pushed_is_the_folder(place, tmp_path, monkeypatch, capsys):
    pushed = []
    monkeypatch.setattr(hub, "push", lambda folder, repo: pushed.append((folder, repo)) or f"https://hub/{repo}")
    assert main(words(place, "flat", "folder", tmp_path / "out", "push=me/sae")) == 0
    assert pushed == [(tmp_path / "out", "me/sae")]
    assert "pushed to https://hub/me/sae" in capsys.readouterr().out


def test_bad_input_writes_nothing(place, tmp_path, capsys):
    out, store = tmp_path / "out", f"store={place / 'store'}"
    cases = [
        (words(place, "flat", "delphi", out), "write store=..."),
        (words(place, "flat", "delphi", out, store, "push=me/sae"), "push is me/sae"),
        (words(place, "flat", "torch", out), "no experts and atoms"),
        (words(place, "tree", "saelens", out, store), "format=torch"),
        (words(place, "none", "saelens", out), "no trained SAE in"),
        (words(place, "flat", "saelens", out, f"store={tmp_path}"), "no manifest"),
        (words(place, "flat", "saelens", out, store, "rows=0"), "rows is 0, expected at least 1"),
        (words(place, "flat", "onnx", out), "format is 'onnx'"),
        (["export", f"out={out}"], "jhsae export: run is missing"),
    ]
    for argv, sentence in cases:
        assert main(argv) == 2
        assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_layer_is_refused(place, tmp_path):
    about = jhsae.load_sae(place / "flat")[2]
    sae, normalizer, _ = jhsae.load_sae(place / "flat")
    other = about | {"reads": about["reads"] | {"layer": 9}}
    save_sae(tmp_path / "other" / "sae", sae, FLAT, SCALED, normalizer, other)
    with pytest.raises(UserError, match=r"reads .* layer 9, but .* holds"):
        export.run(Export(str(tmp_path / "other"), "saelens", str(tmp_path / "out"), store=str(place / "store")))


def test_an_existing_folder_is_left_alone(place, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export.run(Export(str(place / "flat"), "saelens", str(tmp_path / "out")))
    assert list((tmp_path / "out").iterdir()) == []
