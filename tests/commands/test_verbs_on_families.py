"""GPT-2 and Gemma 3, with tokenizers of their kind: harvest, evaluate and browse agree with transformers."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from browser.pages import Page
from small_lm import rows_in_order
from tokenizers_of_families import TEXT, byte_level, sentencepiece

from jhsae import lm
from jhsae.activations.config import Harvest, Source
from jhsae.commands import browse, evaluate, harvest
from jhsae.commands.browse import Browse
from jhsae.commands.evaluate import Evaluate
from jhsae.config import build
from jhsae.data import AbstractNormalizer, Store
from jhsae.errors import UserError
from jhsae.features.token_text import token_text
from jhsae.sae import AbstractSAE
from jhsae.training.checkpoint import save_sae

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CONTEXT, LAYER = 16, 1
SLOT = {
    "_target_": "jhsae.sae.FlatSAE", "embed": 32, "features": 48,
    "sparsifier": {"_target_": "jhsae.sparsify.TopK", "k": 4},
}  # fmt: skip
PLAIN = {"_target_": "jhsae.data.Identity"}


def gpt2(folder):
    """As openai-community/gpt2: one special token, which the tokenizer's settings do not name; GPT2Model's weights."""
    tokenizer = byte_level().backend_tokenizer
    tokenizer.add_special_tokens(["<|endoftext|>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": CONTEXT}))
    sizes = {"vocab_size": end + 1, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(**sizes, initializer_range=0.3, bos_token_id=end, eos_token_id=end)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.transformer.save_pretrained(folder)
    return model, [end]


def gemma3(folder):
    """As google/gemma-3-4b-pt: text and images, a SentencePiece-like tokenizer with <bos> in front."""
    tokenizer = sentencepiece(prefix=False)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 6,
        "sliding_window_pattern": 2, "query_pre_attn_scalar": 8, "initializer_range": 0.3,
    }  # fmt: skip
    images = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    images |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=images, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model, [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]


@pytest.fixture(scope="module", params=[gpt2, gemma3], ids=["gpt2", "gemma3"])
def case(request, tmp_path_factory):
    """A folder with lm/, store/ and run/; torch's model; and the ids of its special tokens."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    (folder / "lm").mkdir()
    torch.manual_seed(0)
    model, special = request.param(folder / "lm")
    (folder / "text.txt").write_text("\n\n".join(TEXT * 12))
    harvest.run(config(folder, "store", CONTEXT))
    reads = {"model": str(folder / "lm"), "layer": LAYER}
    told = {"name": "run", "config_hash": "a", "commit": "b", "store": {"sha256": "c"}, "reads": reads}
    sae = build(SLOT, AbstractSAE, key=jax.random.key(0))
    (folder / "run").mkdir()
    save_sae(folder / "run" / "sae", sae, SLOT, PLAIN, build(PLAIN, AbstractNormalizer), told)
    return folder, model, special


def config(folder: Path, out: str, context: int) -> Harvest:
    text = {"_target_": "jhsae.data.TextFiles", "paths": str(folder / "text.txt")}
    return Harvest(
        str(folder / out), Source(str(folder / "lm"), LAYER), text, 200, context=context, batch=8, dtype="float32"
    )


def test_the_rows_of_a_store_are_the_hidden_states_of_transformers(case):
    folder, model, special = case
    store = Store.open(folder / "store")
    rows, index = rows_in_order(store)
    tokens = np.asarray(store.tokens(), np.int64)
    assert set(tokens[:, 0].tolist()) == {special[0]}, "every sequence opens with BOS"
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor(tokens), output_hidden_states=True).hidden_states[LAYER].numpy()
    np.testing.assert_allclose(rows, hidden[index[:, 0], index[:, 1]], atol=1e-5 * np.abs(hidden).max())
    assert not np.isin(tokens[index[:, 0], index[:, 1]], special).any()


def test_the_cross_entropy_is_that_of_transformers(case):
    folder, model, _ = case
    results = evaluate.run(Evaluate(str(folder / "run"), str(folder / "store"), str(folder / "lm"), sequences=8))
    tokens = torch.tensor(np.asarray(Store.open(folder / "store").tokens()[:8], np.int64))
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert results["metrics"]["ce_model"] == pytest.approx(float(expected), rel=1e-5)
    assert results["metrics"]["ce"] != pytest.approx(float(expected), rel=1e-3)


def test_the_page_shows_the_text(case):
    folder, _, special = case
    out = browse.run(Browse(str(folder / "run"), str(folder / "store"), str(folder / "page.html"), str(folder / "lm")))
    pieces = Page(out.read_text()).data["pieces"]
    tokenizer = lm.load(folder / "lm", layers=0).tokenizer
    named = tokenizer.convert_ids_to_tokens(special[:1])
    assert " water" in pieces and set(named) <= set(pieces), "a leading space is a space, a special token its name"
    assert not any("Ġ" in piece or "▁" in piece for piece in pieces)
    words = tokenizer("the water is cold", add_special_tokens=False)["input_ids"]
    assert "".join(token_text(tokenizer, words)) == "the water is cold"


def test_only_learned_positions_limit_the_context(case):
    folder, model, _ = case
    longer = config(folder, "longer", CONTEXT + 1)
    if model.config.model_type == "gpt2":
        with pytest.raises(UserError, match=r"context is 17, .* at most 16 tokens \(n_positions\)"):
            harvest.run(longer)
    else:
        assert Store.open(harvest.run(longer)).tokens().shape[1] == CONTEXT + 1
