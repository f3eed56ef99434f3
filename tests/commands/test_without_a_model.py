"""Evaluate, browse and ablate on stores of arrays, without a language model."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import runs

from jhsae.__main__ import main
from jhsae.data import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from pages import Page

X = runs.activations(640)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on rows of an array, and held-out stores: of rows, of documents, and of documents with text."""
    folder = tmp_path_factory.mktemp("array")
    Store.from_array(X[:512], folder / "train", shard_rows=128, chunk_rows=32)
    Store.from_array(X[512:], folder / "rows")
    documents = X[512:].reshape(16, 8, runs.EMBED)
    Store.from_array(documents, folder / "documents")
    text = [f"w{i % 5}" for i in range(128)]
    Store.from_array(documents, folder / "text", text=text, tokens=[1000 * (i % 5) for i in range(128)])
    assert main(["train", str(runs.train_config(folder, folder / "train", folder / "run"))]) == 0
    return folder


@pytest.mark.parametrize("store", ["rows", "documents", "text"])
def test_evaluate(place, store, capsys):
    assert main(["evaluate", f"run={place / 'run'}", f"store={place / store}"]) == 0
    assert f"jhsae browse run={place / 'run'} store={place / store} out=" in capsys.readouterr().out
    row = json.loads((place / "run" / "results.jsonl").read_text().splitlines()[-1])
    assert row["metrics"]["ev_r2"] is not None and "ce_recovered" not in row["metrics"]
    contexts = place / "run" / "contexts.json"
    assert contexts.exists() == (store == "text")
    if store == "text":
        shown = {token for one in json.loads(contexts.read_text()) for c in one["contexts"] for token in c["tokens"]}
        assert shown and shown <= {f"w{i}" for i in range(5)}


@pytest.mark.parametrize("store", ["rows", "documents", "text"])
def test_browse(place, store):
    out = place / f"{store}.html"
    assert main(["browse", f"run={place / 'run'}", f"store={place / store}", f"out={out}"]) == 0
    data = Page(out.read_text()).data
    assert data["latents"] and all(one["top"] == one["bottom"] == [] for one in data["latents"])
    known = store == "text"
    assert data["unit"] == ("token" if known else "row") and bool(data["search"]) == known
    found = Store.open(place / store)
    index, rows = (
        found.index(0, 128),
        {tuple(i[:2]): x for i, x in zip(found.index(0, 128), found.read(0, 128), strict=True)},
    )
    assert len(rows) == len(index)
    for latent in data["latents"]:
        assert bool(latent["tokens"]) == known
        for sequence, position, *_ in latent["first"]:
            piece = data["pieces"][data["sequences"][sequence][position]]
            kind = {"rows": "row ", "documents": ":", "text": "w"}[store]
            assert kind in piece


def test_ablate(place, tmp_path):
    config = {"out": str(tmp_path / "study"), "train": str(place / "run.yaml"), "store": str(place / "rows")}
    (tmp_path / "study.yaml").write_text(json.dumps(config | {"axes": {"k": {"one": ["sae.route.k=1"]}}, "seeds": [0]}))
    assert main(["ablate", str(tmp_path / "study.yaml")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["base", "one"] and "| n/a |" in (
        tmp_path / "study" / "table.md"
    ).read_text()


@pytest.mark.parametrize("verb", [["evaluate"], ["browse", "out=x.html"]])
def test_a_language_model_needs_whole_documents_with_token_ids(place, tmp_path, monkeypatch, verb, capsys):
    monkeypatch.chdir(tmp_path)
    positions = np.tile(np.arange(8), 16)
    positions[7] = -1
    Store.from_array(X[512:], tmp_path / "gaps", tokens=np.arange(128), positions=positions)
    for store, lacks in ((place / "rows", "rows without token ids"), (tmp_path / "gaps", "documents with gaps")):
        assert main([*verb, f"run={place / 'run'}", f"store={store}", "lm=embedded"]) == 2
        assert f"holds rows {'of ' if 'gaps' in lacks else ''}{lacks.removeprefix('rows ')}" in capsys.readouterr().err
