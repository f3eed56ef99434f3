"""Prompts of every family of tokenizers: BOS once where there is one, padding on the right, one token by its text."""

from dataclasses import replace

import numpy as np
import pytest
from tokenizers_of_families import FAMILIES, byte_level, sentencepiece, wordpiece

from jhsae import lm
from jhsae.errors import UserError
from jhsae.evals.interventions import token_id, tokenised
from jhsae.features.token_text import token_text


def model_of(tokenizer, **sizes):
    """The embedded model with another tokenizer, and with other sizes in its config."""
    model = lm.load("embedded").model
    return lm.LanguageModel(replace(model, config=replace(model.config, **sizes)), tokenizer, "other")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_bos_once_and_padding_on_the_right(family):
    tokenizer = FAMILIES[family]()
    texts = ["the water is cold", "water"]
    found = tokenised(texts, model_of(tokenizer))
    bos = tokenizer.bos_token_id
    for i, text in enumerate(texts):
        assert found.tokens(i) == [bos, *tokenizer.encode(text, add_special_tokens=False)]
    table = np.asarray(found.ids)
    assert not found.live[:, 0].any() and not np.asarray(found.live)[1, int(found.lengths[1]) :].any()
    assert int(found.live.sum()) == int(found.lengths.sum()) - 2 and table.shape[1] == found.lengths.max()
    if "<s>water" in tokenizer.decode(tokenizer.encode("<s>water", add_special_tokens=False)).replace(" ", ""):
        again = tokenised("<s>water", model_of(tokenizer)).tokens(0)
        assert again.count(bos) == 1 and again[0] == bos


def test_a_tokenizer_without_bos_gives_text_alone():
    tokenizer = byte_level()
    tokenizer.bos_token = None
    found = tokenised("the water", model_of(tokenizer))
    assert found.tokens(0) == tokenizer.encode("the water", add_special_tokens=False) and bool(found.live.all())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_token_that_is_typed_as_it_reads_is_found(family):
    tokenizer = FAMILIES[family]()
    ids = sorted(tokenizer.get_vocab().values())
    texts = token_text(tokenizer, ids)
    special = {tokenizer.unk_token_id, tokenizer.bos_token_id}
    once = [(i, t) for i, t in zip(ids, texts, strict=True) if texts.count(t) == 1 and i not in special and t.isascii()]
    words = [(i, t) for i, t in once if t.strip().isalpha()][:40]
    assert len(words) >= 20
    model = model_of(tokenizer)
    assert [token_id(text, model) for _, text in words] == [i for i, _ in words]


def test_what_is_no_single_token():
    for tokenizer, text in ((byte_level(), "water house"), (sentencepiece(), "the water"), (wordpiece(), "zzqq~")):
        with pytest.raises(UserError, match="is not one token of this model but"):
            token_id(text, model_of(tokenizer))
    with pytest.raises(UserError, match="is not one token of this model but nothing"):
        token_id("", model_of(byte_level()))
    with pytest.raises(UserError, match=r"holds token .*, but the model has 5"):
        tokenised("the water", model_of(byte_level(), vocab=5))
    with pytest.raises(UserError, match="at most 3 tokens"):
        tokenised("the water is cold", model_of(byte_level(), positions=3))


def test_the_embedded_model():
    model = lm.load("embedded")
    assert token_text(model.tokenizer, [token_id(" dog", model)]) == [" dog"]
    with pytest.raises(UserError, match="prompt 0 is empty"):
        tokenised("", model)
