import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jhsae import config as cfg
from jhsae import lm
from jhsae.activations.config import Harvest, Source
from jhsae.commands.harvest import run
from jhsae.data import Store, ordinary
from jhsae.errors import UserError

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
VOCAB, EMBED, LAYER, CONTEXT = 40, 16, 1, 10


def save_language_model(folder: Path) -> None:
    """A random Gemma-2 of two blocks with a tokenizer of words ``w4`` to ``w39``."""
    config = lm.Gemma2Config(
        vocab=VOCAB, embed=EMBED, hidden=24, heads=2, kv_heads=1, head_dim=8, window=4,
        sliding=(True, False), query_pre_attn_scalar=8,
    )  # fmt: skip
    shapes = {
        "q": (16, 16), "k": (8, 16), "v": (8, 16), "o": (16, 16), "gate": (24, 16), "up": (24, 16),
        "down": (16, 24), "attention_in": (16,), "attention_out": (16,), "mlp_in": (16,), "mlp_out": (16,),
    }  # fmt: skip
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.3, shape).astype(np.float32))

    blocks = lm.Blocks(**{name: draw(2, *shape) for name, shape in shapes.items()})
    words = {w: i for i, w in enumerate([*SPECIAL, *(f"w{i}" for i in range(4, VOCAB))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{s[1:-1]}_token": s for s in SPECIAL})
    lm.save(lm.Gemma2(draw(VOCAB, EMBED), blocks, draw(EMBED), config), tokenizer, folder, jnp.float32)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Harvest:
    """A harvest of all 40 short documents of a file; `out` is to be replaced."""
    folder = tmp_path_factory.mktemp("harvest")
    save_language_model(folder / "lm")
    rng = np.random.default_rng(1)
    documents = [" ".join(f"w{w}" for w in rng.integers(4, VOCAB, rng.integers(1, 12))) for _ in range(40)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    text = {"_target_": "jhsae.data.TextFiles", "paths": str(folder / "text.txt")}
    return Harvest(
        str(folder / "store"), Source(str(folder / "lm"), LAYER), text, rows=10_000, context=CONTEXT, batch=8,
        dtype="float32", shuffle_rows=50,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(config) -> Store:
    return Store.open(run(config))


def rows_in_order(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """(activations, index) sorted by sequence and position."""
    index = store.index(0, store.rows)
    order = np.lexsort((index[:, 1], index[:, 0]))
    return store.read(0, store.rows)[order], index[order]


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


def test_a_text_that_is_too_short_for_rows_gives_what_it_holds(config, store, capsys, tmp_path):
    assert store.rows < config.rows
    run(replace(config, out=str(tmp_path / "s")))
    assert f"the text holds {store.rows} tokens in whole sequences, fewer than rows=10000" in capsys.readouterr().out


def test_rows_without_text_are_counted_and_change_nothing(config, store, capsys, tmp_path):
    documents = (Path(config.text["paths"])).read_text().split("\n\n")
    lines = [{"text": None}, *({"text": text, "other": i % 2 or "x"} for i, text in enumerate(documents)), {}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = config.text | {"paths": str(tmp_path / "text.jsonl")}
    again = Store.open(run(replace(config, out=str(tmp_path / "again"), text=text)))
    assert again.manifest.files == store.manifest.files
    assert again.manifest.dataset["skipped"] == {"null or missing": 2} and "skipped" not in store.manifest.dataset
    assert "skipped rows of the text: 2 null or missing" in capsys.readouterr().out


def test_an_existing_store_is_not_overwritten(config, store):
    with pytest.raises(UserError, match="made by this very configuration: use it as it is"):
        run(config)
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
    path = Path(__file__).parents[1] / "configs" / "harvest" / f"{name}.yaml"
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
