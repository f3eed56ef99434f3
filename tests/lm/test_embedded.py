"""The language model that ships with the package: it models text it never saw, and transformers agrees with it.

heldout_glosses.tsv holds 40 synsets that were held out of its training, from WordNet 3.0, Copyright 2006 by Princeton
University. All rights reserved. Used under the WordNet 3.0 licence, printed in jhsae/assets/tiny_lm/README.md; the
text is provided "as is" without warranty, and Princeton's name is not used to advertise this software.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import lm
from jhsae.data.wordnet import is_heldout

CONTEXT = 128


@pytest.fixture(scope="module")
def embedded():
    return lm.load("embedded")


@pytest.fixture(scope="module")
def rows(embedded):
    """[rows, CONTEXT] of the held-out documents, packed as in training."""
    lines = (Path(__file__).parent / "heldout_glosses.tsv").read_text().splitlines()
    synsets = dict(line.split("\t") for line in lines)
    assert all(is_heldout(i) for i in synsets)
    tokenizer = embedded.tokenizer
    stream = [
        token
        for text in synsets.values()
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    whole = len(stream) // (CONTEXT - 1)
    packed = np.asarray(stream[: whole * (CONTEXT - 1)]).reshape(whole, CONTEXT - 1)
    return jnp.asarray(np.insert(packed, 0, tokenizer.bos_token_id, axis=1), jnp.int32)


def test_sizes(embedded):
    model = embedded.model
    assert (model.vocab, model.embed, model.layers) == (8192, 256, 4)
    assert len(embedded.tokenizer) == model.vocab
    assert sum(path.stat().st_size for path in lm.bundled().iterdir()) < 16 * 2**20


def test_loss_on_heldout_glosses(embedded, rows):
    assert len(rows) >= 6
    assert lm.cross_entropy(embedded.model(rows), rows).mean() < 4.8


def test_loss_needs_the_context_in_its_order(embedded, rows):
    shuffled = np.random.default_rng(0).permuted(np.asarray(rows), axis=1)
    shuffled = jnp.asarray(shuffled)
    in_order = lm.cross_entropy(embedded.model(rows), rows).mean()
    assert lm.cross_entropy(embedded.model(shuffled), shuffled).mean() > in_order + 1


@pytest.mark.parametrize("word", ["dog", "animal", "plant"])
def test_words_are_single_tokens_with_or_without_a_space(embedded, word):
    tokenizer = embedded.tokenizer
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [f"▁{word}"]
    assert tokenizer(word, add_special_tokens=False)["input_ids"] == ids


def test_special_tokens_are_those_of_gemma(embedded):
    tokenizer = embedded.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer("a dog")["input_ids"][0] == 2
    text = 'covenant: enter into a formal agreement; "they (both) signed it in 1907"'
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_transformers_computes_the_same_logits(embedded, rows):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(lm.bundled(), attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor(np.asarray(rows[:2]))).logits.numpy()
    np.testing.assert_allclose(embedded.model(rows[:2]), logits, atol=1e-4)
