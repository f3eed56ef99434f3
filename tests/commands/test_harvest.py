import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from small_lm import CONTEXT, EMBED, LAYER, VOCAB, rows_in_order, save_model_and_text

from jhsae import config as cfg
from jhsae import lm
from jhsae.activations.config import Harvest, Source
from jhsae.commands.harvest import run
from jhsae.data import Store, ordinary
from jhsae.errors import UserError


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Harvest:
    """A harvest of all 40 short documents of a file; `out` is to be replaced."""
    folder = tmp_path_factory.mktemp("harvest")
    save_model_and_text(folder, 40)
    text = {"_target_": "jhsae.data.TextFiles", "paths": str(folder / "text.txt")}
    return Harvest(
        str(folder / "store"), Source(str(folder / "lm"), LAYER), text, rows=10_000, context=CONTEXT, batch=8,
        dtype="float32", shuffle_rows=50,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(config) -> Store:
    return Store.open(run(config))


def test_every_ordinary_token_is_stored_once_with_the_residual_of_the_model(config, store):
    reader = lm.load(config.lm.path)
    tokens = store.tokens()
    sequence, position = np.nonzero(ordinary(tokens, reader.tokenizer))
    x, index = rows_in_order(store)
    np.testing.assert_array_equal(index, np.stack([sequence, position, tokens[sequence, position]], axis=1))
    expected = reader.model.residual(jnp.asarray(tokens.astype(np.int32)), LAYER)
    np.testing.assert_allclose(x, np.asarray(expected)[sequence, position], rtol=1e-5, atol=1e-6)


def test_rows_are_shuffled(store):
    sequence = store.index(0, store.rows)[:, 0]
    assert np.mean(np.diff(sequence) == 0) < 0.3


def test_the_manifest_tells_where_the_rows_come_from(config, store):
    m = store.manifest
    assert (m.model, m.layer, m.embed, m.context, m.seed) == (config.lm.path, LAYER, EMBED, CONTEXT, 0)
    assert m.config == cfg.to_dict(config) and m.config_hash == cfg.config_hash(config)
    assert m.dataset["files"][0]["path"].endswith("text.txt")
    assert m.documents == (store.tokens() == 1).sum()
    assert m.tokenizer["vocab"] == VOCAB and len(m.tokenizer["sha256"]) == 64


def test_a_second_run_is_the_same_bytes_and_another_batch_size_the_same_rows(config, store, tmp_path):
    again = Store.open(run(replace(config, out=str(tmp_path / "again"))))
    assert again.manifest.files == store.manifest.files
    on_one_device = Store.open(run(replace(config, out=str(tmp_path / "three"), batch=3)))
    x, index = rows_in_order(on_one_device)
    np.testing.assert_array_equal(index, rows_in_order(store)[1])
    np.testing.assert_allclose(x, rows_in_order(store)[0], rtol=1e-5, atol=1e-6)


def test_rows_bound_the_harvest_exactly_and_bfloat16_rounds_it(config, store, tmp_path):
    few = Store.open(run(replace(config, out=str(tmp_path / "few"), rows=101, dtype="bfloat16")))
    assert few.rows == 101 and few.manifest.sequences < store.manifest.sequences
    everything = {tuple(i): x for x, i in zip(*rows_in_order(store), strict=True)}
    x, index = rows_in_order(few)
    whole = np.stack([everything[tuple(i)] for i in index])
    np.testing.assert_allclose(x, whole, rtol=2**-8, atol=1e-6)


def test_a_text_that_is_too_short_for_rows_gives_what_it_holds(config, store, caplog, tmp_path):
    assert store.rows < config.rows
    run(replace(config, out=str(tmp_path / "s")))
    assert f"the text holds {store.rows} tokens in whole sequences, fewer than rows=10000" in caplog.text


def test_rows_without_text_are_counted_and_change_nothing(config, store, caplog, tmp_path):
    documents = (Path(config.text["paths"])).read_text().split("\n\n")
    lines = [{"text": None}, *({"text": text, "other": i % 2 or "x"} for i, text in enumerate(documents)), {}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = config.text | {"paths": str(tmp_path / "text.jsonl")}
    with caplog.at_level("INFO", "jhsae"):
        again = Store.open(run(replace(config, out=str(tmp_path / "again"), text=text)))
    assert again.manifest.files == store.manifest.files
    assert again.manifest.dataset["skipped"] == {"null or missing": 2} and "skipped" not in store.manifest.dataset
    assert "skipped rows of the text: 2 null or missing" in caplog.text


def test_a_finished_store_is_left_alone_and_one_of_another_config_is_refused(config, store, caplog, capsys):
    before = {f: f.stat().st_mtime_ns for f in Path(store.path).rglob("*") if f.is_file()}
    with caplog.at_level("INFO", "jhsae"):
        assert run(config) == Path(store.path)
    assert f"{store.path}: finished; nothing to do" in caplog.text
    assert before == {f: f.stat().st_mtime_ns for f in Path(store.path).rglob("*") if f.is_file()}
    made = f"{store.path}: {store.rows} rows of {EMBED} from {config.lm.path}, layer {LAYER}; next: jhsae train "
    assert capsys.readouterr().out.splitlines()[-1].startswith(made)
    with pytest.raises(UserError, match="exists and is never overwritten; write another out="):
        run(replace(config, seed=1))


def test_mistakes_are_found_before_the_model_runs(config, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    out = str(tmp_path / "s")
    for text, model, message in (
        (str(tmp_path / "empty.txt"), "/absent", "an empty dataset: TextFiles"),
        (str(tmp_path / "absent.txt"), "/absent", r"absent\.txt does not exist"),
        (config.text["paths"], str(tmp_path), r"no config\.json"),
    ):
        changed = replace(config, out=out, text=config.text | {"paths": text}, lm=Source(model, LAYER))
        with pytest.raises(UserError, match=message):
            run(changed)
    with pytest.raises(UserError, match="layers=3 of the 2"):
        run(replace(config, out=out, lm=replace(config.lm, layer=3)))
    with pytest.raises(UserError, match="fewer than one sequence of 4999"):
        run(replace(config, out=out, context=5000))
    for name, value in (("rows", 0), ("context", 1), ("batch", 0), ("seed", -1), ("shuffle_rows", 0)):
        with pytest.raises(UserError, match=f"{name} is {value}, expected at least"):
            replace(config, **{name: value})
    assert not Path(out).exists() and not Path(out + ".partial").exists()


@pytest.mark.parametrize("name", ["embedded", "embedded_heldout", "embedded_full", "embedded_layers", "gemma2_2b"])
def test_the_shipped_configs_load(name):
    path = Path(__file__).parents[2] / "configs" / "harvest" / f"{name}.yaml"
    loaded = cfg.load(Harvest, path)
    cfg.build(loaded.text)
    assert path.read_text().startswith("#")


def changed_model(config: Harvest, folder: Path, settings: dict | None = None, **special: str | None) -> str:
    """A copy of the model with other settings and special tokens."""
    shutil.copytree(config.lm.path, folder)
    for name, changes in (("config.json", settings or {}), ("tokenizer_config.json", special)):
        found = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return str(folder)


@pytest.mark.parametrize(
    ("special", "first", "between"),
    [({"bos_token": None}, None, 1), ({"bos_token": "<eos>"}, 1, 1), ({"eos_token": None}, 2, 2)],
)
def test_tokenizers_without_bos_or_with_one_token_for_both(config, store, tmp_path, special, first, between):
    model = changed_model(config, tmp_path / "lm", **special)
    made = Store.open(run(replace(config, out=str(tmp_path / "s"), lm=Source(model, LAYER))))
    tokens, about = made.tokens(), made.manifest.tokenizer
    assert (about["first"], about["between"]) == (first, between)
    body = tokens if first is None else tokens[:, 1:]
    assert first is None or (tokens[:, 0] == first).all()
    assert made.manifest.documents == (body == between).sum() > 20
    reader = lm.load(model)
    sequence, position = np.nonzero(ordinary(tokens, reader.tokenizer))
    x, index = rows_in_order(made)
    np.testing.assert_array_equal(index[:, :2], np.stack([sequence, position], axis=1))
    expected = np.asarray(reader.model.residual(jnp.asarray(tokens.astype(np.int32)), LAYER))
    np.testing.assert_allclose(x, expected[sequence, position], rtol=0, atol=1e-5)


def test_a_context_or_a_token_that_the_model_does_not_have(config, tmp_path):
    short = changed_model(config, tmp_path / "short", {"max_position_embeddings": CONTEXT - 1})
    with pytest.raises(UserError, match="context is 10, but the model was made for at most 9 tokens"):
        run(replace(config, out=str(tmp_path / "s"), lm=Source(short, LAYER)))
    added = changed_model(config, tmp_path / "added", bos_token="<start>")  # gets the number after the last
    with pytest.raises(UserError, match=r"every sequence with token 40 \('<start>'\), but the model has 40"):
        run(replace(config, out=str(tmp_path / "s"), lm=Source(added, LAYER)))
    assert not (tmp_path / "s").exists() and not (tmp_path / "s.partial").exists()
