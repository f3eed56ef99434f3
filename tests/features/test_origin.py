"""A store knows its language model again: by content wherever it lies, and an older store by its name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from small_lm import EMBED, LAYER, save_language_model

from jhsae import lm
from jhsae.activations.config import Harvest, Source
from jhsae.commands.harvest import run
from jhsae.data import ModelName, Origin, Store, Writer, same_model
from jhsae.errors import UserError
from jhsae.features.origin import check_origin, language_model
from jhsae.sae import FlatSAE
from jhsae.sparsify import TopK


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder ``work`` with a model, a text, and a store that was harvested from inside of it."""
    folder = tmp_path_factory.mktemp("origin") / "work"
    folder.mkdir()
    save_language_model(folder / "models" / "m")
    (folder / "t.txt").write_text("\n\n".join(f"w{i % 30 + 4} w5 w6 w7 w8" for i in range(40)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        text = {"_target_": "jhsae.data.TextFiles", "paths": "t.txt"}
        run(Harvest("s", Source("models/m", LAYER), text, rows=100, context=8, dtype="float32"))
    return folder


@pytest.fixture
def work(made, tmp_path):
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


def old(work: Path) -> Store:
    """The same store without the content of its model, as before it was recorded."""
    store = Store.open(work / "s")
    origin = Origin(store.manifest.model, LAYER, {}, {"source": "test"}, 0, 0, {}, "")
    tokens = np.arange(4, 36, dtype=np.uint32).reshape(-1, 8)
    writer = Writer(work / "old", origin, tokens, 8, EMBED, dtype="float32", shuffle_rows=8)
    writer.add(np.ones((8, EMBED), np.float32), np.ones((8, 3), np.int32))
    return writer.close()


def test_the_manifest_says_what_the_model_is_and_where_it_lay(made):
    manifest = Store.open(made / "s").manifest
    about = manifest.tokenizer
    assert manifest.model == "models/m" and (about["first"], about["between"]) == (2, 1)
    assert about["model"] == {"sha256": lm.load(made / "models/m").sha256, "path": str((made / "models/m").resolve())}


def test_any_path_to_the_model_will_do(work, monkeypatch):
    store = Store.open(work / "s")
    monkeypatch.chdir("/")
    assert language_model(str(work / "models/m"), store).name == str(work / "models/m")
    shutil.move(work / "models/m", work / "moved")
    assert language_model(f"{work}/moved/", store).model.layers == 2
    monkeypatch.chdir(work)
    assert language_model("moved", store).name == "moved"
    (work / "link").symlink_to("moved")
    assert language_model("link", store).name == "link"


def test_without_a_path_it_is_found_where_it_lay_or_beside_the_store(work, monkeypatch):
    monkeypatch.chdir("/")
    store = Store.open(work / "s")
    assert language_model(None, store).sha256 == store.manifest.tokenizer["model"]["sha256"]
    record = store.manifest.tokenizer | {"model": store.manifest.tokenizer["model"] | {"path": "/nowhere"}}
    elsewhere = replace(store, manifest=replace(store.manifest, tokenizer=record))
    assert language_model(None, elsewhere).name == str((work / "models/m").resolve())


def test_other_weights_and_other_tokenizers_are_refused(work, monkeypatch):
    monkeypatch.chdir(work)
    store = Store.open("s")
    shutil.copytree("models/m", "other")
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match=r"lm is other, but .* from models/m, and their weights differ; write the lm="):
        language_model("other", store)
    shutil.copy("other/config.json", "models/m/config.json")
    with pytest.raises(UserError, match="from models/m when its weights were others"):
        language_model("models/m", store)
    Path("models/m/config.json").write_text(json.dumps(config))
    words = json.loads(Path("models/m/tokenizer.json").read_text())
    words["model"]["vocab"]["w4"], words["model"]["vocab"]["w5"] = 5, 4
    Path("models/m/tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match="has another vocabulary than the one"):
        language_model("models/m", store)


def test_an_older_store_compares_names_and_folders(work, monkeypatch):
    monkeypatch.chdir(work)
    store = old(work)
    for path in ("models/m", "./models/m/", str(work / "models/m")):
        assert language_model(path, store).model.layers == 2
    monkeypatch.chdir("/")
    assert language_model(str(work / "models/m"), store).model.layers == 2
    assert language_model(None, store).model.layers == 2
    shutil.copytree(work / "models/m", work / "other")
    with pytest.raises(UserError, match=r"does not know its content; write lm=models/m, from"):
        language_model(str(work / "other"), store)


def test_an_sae_and_a_store_of_one_model_belong_together(work, monkeypatch):
    monkeypatch.chdir(work)
    store, sae = Store.open("s"), FlatSAE(EMBED, 8, TopK(2), key=jax.random.key(0))
    sha256 = store.manifest.tokenizer["model"]["sha256"]
    check_origin(sae, {"reads": {"model": "/gone/m", "layer": LAYER, "model_sha256": sha256}}, store)
    check_origin(sae, {"reads": {"model": str(work / "models/m"), "layer": LAYER}}, store)  # of an older jhsae
    check_origin(sae, {"reads": ModelName.recorded(store.manifest).reads(LAYER)}, store)
    with pytest.raises(UserError, match=r"reads models/m layer 1, but .*; the weights there have changed; harvest"):
        check_origin(sae, {"reads": {"model": "models/m", "layer": LAYER, "model_sha256": "0" * 64}}, store)
    with pytest.raises(UserError, match=r"reads /gone/m layer 1, but .* holds models/m layer 1; harvest held-out"):
        check_origin(sae, {"reads": {"model": "/gone/m", "layer": LAYER}}, store)


def test_names_of_one_model():
    embedded, folder = ModelName("embedded"), ModelName(str(lm.bundled()))
    assert same_model(embedded, folder) and not same_model(embedded, ModelName("org/name"))
    assert same_model(ModelName("org/name"), ModelName("org/name"))
    assert not same_model(ModelName("org/name", "a"), ModelName("org/name", "b"))
