"""The text of a token is what it adds to a decoded sequence, for every family of tokenizers."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tokenizers_of_families import FAMILIES, SPECIAL, TEXT, byte_level, sentencepiece, wordpiece

from jhsae.browser.pieces import Pieces
from jhsae.data import special_ids
from jhsae.features.token_text import texts, token_ids, token_text, word, word_ids
from jhsae.files.escaping import visible

SEARCH = Path(__file__).parents[2] / "jhsae" / "browser" / "search.js"


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    return FAMILIES[request.param]()


@pytest.mark.parametrize("text", [*TEXT, "river  house", "running"])
def test_texts_joined_are_the_decoded_sequence(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    found = token_text(tokenizer, ids)
    if not any("\\x" in one for one in found):  # a letter that is spread over several tokens is shown as its bytes
        assert "".join(found).strip(" ") == decoded.strip(" ")
    assert not any(mark in "".join(found) for mark in ("Ġ", "▁", "##", "</w>", "æ", "<0x", "\ufffd"))


def test_a_word_has_its_space_and_is_found_with_and_without_one(tokenizer):
    every = token_text(tokenizer, range(len(tokenizer)))
    found = token_ids("Water", tokenizer)
    assert {" water", "water "} & set(every)  # </w> writes the space behind the word
    assert found == [i for i, text in enumerate(every) if text.strip().casefold() == "water"]
    words, of_token = word_ids(token_text(tokenizer, range(len(tokenizer))))
    assert {words[of_token[i]] for i in found} == {"water"}


def test_special_and_unknown_ids_are_named(tokenizer):
    ids = [0, 1, len(tokenizer), len(tokenizer) + 7]
    assert token_text(tokenizer, ids) == [*SPECIAL, f"<token {len(tokenizer)}>", f"<token {len(tokenizer) + 7}>"]


def test_incomplete_letters_are_shown_as_their_bytes():
    for tokenizer in (byte_level(260), sentencepiece()):
        ids = tokenizer("日", add_special_tokens=False)["input_ids"][-3:]
        assert token_text(tokenizer, ids) == ["\\xe6", "\\x97", "\\xa5"]
    assert token_text(sentencepiece(), sentencepiece().convert_tokens_to_ids(["<0x0A>", "<0x41>"])) == ["\n", "A"]


def test_tokens_that_were_added_keep_their_text():
    tokenizer = byte_level()
    tokenizer.add_tokens(["éé", "   "])
    assert token_text(tokenizer, [len(tokenizer) - 2, len(tokenizer) - 1]) == ["éé", "   "]


def test_a_continuation_is_no_word_of_its_own():
    tokenizer = wordpiece()
    inside = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i).startswith("##")]
    assert inside and not any(text.startswith((" ", "##")) for text in token_text(tokenizer, inside))


def test_contexts_and_page_show_the_same():
    tokenizer = byte_level(420)
    ids = tokenizer("the naïve 日本語 water", add_special_tokens=False)["input_ids"]
    page = Pieces(texts(tokenizer), special_ids(tokenizer))
    for i in ids:
        page.use(i)
    written = page.written(np.zeros(len(tokenizer), np.int64))
    assert texts(tokenizer)(ids) == written["pieces"] == token_text(tokenizer, ids)
    assert "".join(written["pieces"]) == "the naïve 日本語 water" and written["words"][-1] == "water"


def test_words_are_compared_without_case_and_composed():
    assert word(" Cafe\u0301 ") == word("CAFÉ") == "café"
    assert word("Straße") == word("STRASSE") and word("Σ") == word("ς")


@pytest.mark.skipif(shutil.which("node") is None, reason="no JavaScript here")
def test_the_pages_script_folds_as_python_does():
    letters = [
        chr(c) for c in range(0x20, 0x110000) if c != 0x85 and not 0xD800 <= c < 0xE000 and word(chr(c)) != chr(c)
    ]
    words = [*letters, "ΛΌΓΟΣ", " Straße", "Cafe\u0301", "ılık"]
    script = SEARCH.read_text().split("// word -> its tokens")[0]
    script += f"\nconsole.log(JSON.stringify({json.dumps(words)}.map(fold)));"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    differing = [w for w, folded in zip(words, json.loads(done.stdout), strict=True) if folded != word(w)]
    assert len(letters) > 1000 and not differing


def test_characters_without_a_shape_are_written_out():
    assert visible("a b\n\x07\u202e\u2028\ud800") == "a b↵\\x07\\x202e\\x2028\\xd800"
