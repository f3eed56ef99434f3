"""Labels: files, WordNet's categories, halves and permutations by word type, and what does not fit a store."""

import json
from collections import Counter

import numpy as np
import pytest
from labelled import CLASSES, WORDS, labels

from jhsae import evals, lm
from jhsae.errors import UserError
from jhsae.evals.labels import NO_CLASS
from jhsae.teacher import Concept

INDEX = np.array([[0, p, t] for p, t in enumerate([5, 6, 7, 8, 9, 5, 6, 7, 8, 9])], np.int32)


def written(folder, *rows, end="\n"):
    path = folder / "labels.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + end)
    return path


def token(i, name, **more):
    return {"token": i, "class": name, **more}


def test_a_file_of_tokens(tmp_path):
    path = written(tmp_path, token(5, "a"), token(6, "a"), token(8, "b", word="x"), token(9, "b"), token(7, "c"))
    found = evals.read_labels(path).on(INDEX)
    assert found.names == ("a", "b", "c")
    assert found.classes.tolist() == [0, 0, NO_CLASS, 1, 1] * 2  # c has one word
    assert found.words.tolist() == [5, 6, 7, 8, 9] * 2


def test_forms_of_one_word_are_one_type(tmp_path):
    rows = [token(5, "a", word="x"), token(6, "a", word="x"), token(7, "a"), token(8, "b"), token(9, "b")]
    found = evals.read_labels(written(tmp_path, *rows)).on(INDEX)
    assert found.words.tolist()[:3] == [5, 5, 7]
    with pytest.raises(UserError, match="1 of its 2 classes at least 2 words"):
        evals.read_labels(written(tmp_path, *rows[:2], *rows[3:])).on(INDEX)


def test_a_file_of_places(tmp_path):
    rows = [{"sequence": 0, "position": p, "class": name} for p, name in enumerate("abab")]
    found = evals.read_labels(written(tmp_path, *rows)).on(INDEX)
    assert found.classes.tolist() == [0, 1, 0, 1] + [NO_CLASS] * 6


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no label"),
        ([token(5, "a"), {"sequence": 0, "position": 1, "class": "b"}], "both labels of tokens and labels of places"),
        ([token(5, "a"), token(5, "b")], "label 2 gives 5 a second class, 'b'"),
        ([{"class": "a"}], "label 1 names neither a token nor"),
        ([{"sequence": 1, "class": "a"}], "names neither a token nor"),
        ([{"token": 5}], "'class' is missing"),
        ([token(-5, "a")], "'token' is -5, expected a whole number from 0"),
        ([token(True, "a")], "'token' is True"),
        ([token(5, 7)], "'class' is 7, expected a string"),
        (['{"token": NaN, "class": "a"}'], "NaN is no JSON"),
        (["5\ta"], "cannot be read as JSON"),
    ],
)
def test_a_file_of_another_form_is_one_sentence(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        evals.read_labels(written(tmp_path, *rows))


def test_a_cut_off_file_and_no_file(tmp_path):
    with pytest.raises(UserError, match="does not end with a newline"):
        evals.read_labels(written(tmp_path, token(5, "a"), end=""))
    with pytest.raises(UserError, match="there is no file"):
        evals.read_labels(tmp_path / "none")


def test_labels_of_another_vocabulary_are_one_sentence(tmp_path):
    other = evals.read_labels(written(tmp_path, token(50, "a"), token(51, "b")))
    for index in (INDEX, INDEX[:0]):
        with pytest.raises(UserError, match=f"gives 0 of {len(index)} rows a class, and 0 of its 2 classes"):
            other.on(index)


def test_halves_split_the_words_of_every_class():
    found = labels()
    for seed in range(3):
        half = found.half(seed)
        assert not set(found.words[half]) & set(found.words[~half])
        assert Counter(found.words[half] // WORDS) == dict.fromkeys(range(CLASSES), half.sum() // CLASSES)
    assert (found.half(0) != found.half(1)).any() and (found.half(0) == found.half(0)).all()


def test_permuted_labels_move_whole_words():
    found = labels()
    dealt = found.permuted(0)
    assert (dealt.classes != found.classes).mean() > 0.5
    of_word = {(w, c) for w, c in zip(dealt.words.tolist(), dealt.classes.tolist(), strict=True)}
    assert Counter(c for _, c in of_word) == dict.fromkeys(range(CLASSES), WORDS)
    assert len(of_word) == CLASSES * WORDS


def test_wordnet_categories_of_the_embedded_vocabulary():
    tokenizer = lm.load("embedded").tokenizer
    found = evals.wordnet_labels(tokenizer)
    assert "animal" in found.names and "Tops" not in found.names and len(found.names) >= 20

    def category(word):
        return found.names[found.tokens[tokenizer(" " + word, add_special_tokens=False)["input_ids"][0]]]

    assert [category(w) for w in ("dog", "dogs", "bread", "blood", "river")] == [
        "animal", "animal", "food", "body", "object",
    ]  # fmt: skip
    dog, dogs = (tokenizer(" " + w, add_special_tokens=False)["input_ids"][0] for w in ("dog", "dogs"))
    assert found.words[dog] == found.words[dogs]


def test_tokens_of_two_concepts_have_no_class():
    found = evals.concept_labels([Concept("i", "a", (1, 2, 3)), Concept("j", "b", (3, 4))], {1: "x", 2: "x"})
    assert found.tokens == {1: 0, 2: 0, 4: 1} and found.words == {1: 1, 2: 1} and found.names == ("a", "b")
