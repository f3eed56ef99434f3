import numpy as np
import pytest
from small_stores import WORDS, tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jhsae.data import Framing, ordinary, pack, packed, special_ids
from jhsae.data.pack import shuffled
from jhsae.errors import UserError

BOS, EOS = 2, 1


def documents(count: int = 200) -> list[str]:
    """Document d: 1 to 9 words; its first word is its number in base 50, so that documents stay recognisable."""
    rng = np.random.default_rng(0)
    return [" ".join(f"w{4 + (d * 7 + i) % (WORDS - 4)}" for i in range(rng.integers(1, 10))) for d in range(count)]


def test_sequences_are_bos_and_the_stream_of_shuffled_documents_separated_by_eos():
    tok = tokenizer()
    tokens = pack(documents(), tok, 16, 5)
    stream = [t for d in shuffled(documents(), 5, 10_000) for t in (*tok(d)["input_ids"], EOS)]
    whole = len(stream) // 15
    np.testing.assert_array_equal(tokens[:, 1:].ravel(), stream[: whole * 15])
    assert tokens.shape == (whole, 16) and tokens.dtype == np.uint32 and (tokens[:, 0] == BOS).all()


def test_packing_is_deterministic_in_the_seed_and_bounded_shuffle_keeps_every_document():
    tok = tokenizer()
    same = [pack(documents(), tok, 8, seed, buffer=10) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])
    order = list(shuffled(documents(), 3, 10))
    assert sorted(order) == sorted(documents()) and order != documents()


def test_reading_stops_as_soon_as_there_are_enough_ordinary_tokens():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield "w4 w5 w6"

    tok = tokenizer()
    tokens = pack(endless(), tok, 9, 0, rows=100, buffer=20)
    held = ordinary(tokens, tok).sum()
    assert 100 <= held < 100 + 8
    assert taken < 1200


def test_ordinary_tokens_are_neither_bos_nor_eos_nor_padding():
    tokens = np.array([[2, 5, 1, 0, 3]], np.uint32)
    np.testing.assert_array_equal(ordinary(tokens, tokenizer()), [[False, True, False, False, True]])


def test_what_cannot_be_packed_is_a_sentence():
    tok = tokenizer()
    with pytest.raises(UserError, match=r"holds 4 tokens, fewer than one sequence of 15 .* context of at most 5"):
        pack(["w4 w5 w6"], tok, 16, 0)
    with pytest.raises(UserError, match="context is 1, expected at least 2"):
        pack(["w4"], tok, 1, 0)
    with pytest.raises(UserError, match=r"gives token 6 \('w6'\), but the model has 6 tokens"):
        pack(["w4 w5 w6"], tok, 4, 0, vocab=6)
    with pytest.raises(UserError, match=r"cannot read the text \(.*Missing \[UNK\] token"):
        pack(["w4 zebra"], PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"w4": 0}, "?"))), 4, 0)
    with pytest.raises(UserError, match="holds 8 tokens, none of them ordinary"):
        pack(["<eos> <pad> <bos>"] * 2, tok, 4, 0)


def framed(bos: str | None, eos: str | None):
    tok = tokenizer()
    tok.bos_token, tok.eos_token = bos, eos
    return tok


def test_without_bos_sequences_are_text_alone():
    tok = framed(None, "<eos>")
    tokens, ended = packed(documents(), tok, 16, 5)
    stream = [t for d in shuffled(documents(), 5, 10_000) for t in (*tok(d)["input_ids"], EOS)]
    whole = len(stream) // 16
    np.testing.assert_array_equal(tokens.ravel(), stream[: whole * 16])
    assert tokens.shape == (whole, 16) and ended == (tokens == EOS).sum() > 0
    assert special_ids(tok) == (0, EOS)


@pytest.mark.parametrize(
    ("bos", "eos", "first", "between"),
    [("<bos>", None, BOS, BOS), ("<eos>", "<eos>", EOS, EOS), (None, None, None, None), ("<bos>", "<eos>", BOS, EOS)],
)
def test_documents_are_counted_whatever_stands_between_them(bos, eos, first, between):
    tok = framed(bos, eos)
    assert Framing.of(tok) == Framing(first, between)
    text = ["w4 w5 w6", "w7", "w8 w9 <eos> w10"]  # the last one holds a special token of its own
    tokens, ended = packed(text, tok, 3, 0)
    body = tokens.ravel() if first is None else tokens[:, 1:].ravel()
    after = [] if between is None else [between]
    stream, ends = [], []
    for document in shuffled(text, 0, 10_000):
        ids = [*tok(document, add_special_tokens=False)["input_ids"], *after]
        stream += ids
        ends += [False] * (len(ids) - 1) + [True]
    np.testing.assert_array_equal(body, stream[: len(body)])
    assert ended == sum(ends[: len(body)]) >= 1


def test_a_tokenizer_that_adds_special_tokens_itself_does_not_add_them_twice():
    tok = tokenizer()
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    assert tok("w4")["input_ids"] == [BOS, 4, EOS]
    np.testing.assert_array_equal(pack(documents(), tok, 16, 5), pack(documents(), tokenizer(), 16, 5))
