import pytest

from jhsae.teacher.vocabulary import forms, plural, single_tokens


class Tokenizer:
    """Words of `known` are one token, the unknown word is one unknown token, others are two."""

    unk_token_id = 3

    def __init__(self, known):
        self.known = {" " + word: i for i, word in enumerate(known, start=10)}

    def __call__(self, texts, add_special_tokens):
        assert add_special_tokens is False
        return {"input_ids": [[self.known[t]] if t in self.known else [3] * (1 + ("z" in t)) for t in texts]}


@pytest.mark.parametrize(
    ("word", "many"),
    [
        ("dog", "dogs"),
        ("berry", "berries"),
        ("day", "days"),
        ("fox", "foxes"),
        ("bush", "bushes"),
        ("woman", "women"),
        ("human", "humans"),
        ("child", "children"),
    ],
)
def test_plural(word, many):
    assert plural(word) == many


def test_a_noun_has_four_forms_and_a_name_one():
    assert forms("dog") == ("dog", "dogs", "Dog", "Dogs")
    assert forms("Paris") == ("Paris",)


def test_only_words_of_exactly_one_known_token_count():
    found = single_tokens(
        Tokenizer(["dog", "dogs", "Paris", "in"]), ["dog", "cat", "zebra", "Paris", "in", "big dog", ""], {}
    )
    assert found.ids == {"dog": (10, 11), "Paris": (12,)}
    assert found.surface == {10: "dog", 11: "dogs", 12: "Paris"}


def test_no_words_give_an_empty_vocabulary():
    assert single_tokens(Tokenizer([]), ["two words"], {}).ids == {}


def test_tokens_that_mostly_begin_longer_words_do_not_count():
    class Prefixes(Tokenizer):
        """ "professor" begins with the token "prof"."""

        def __call__(self, texts, add_special_tokens):
            split = {" professor": [self.known[" prof"], 99], " dogma": [self.known[" dog"], 99]}
            found = super().__call__(texts, add_special_tokens)["input_ids"]
            return {"input_ids": [split.get(t, ids) for t, ids in zip(texts, found, strict=True)]}

    usage = {"professor": 5, "prof": 1, "dogma": 1, "dog": 2, "cat": 1}
    assert single_tokens(Prefixes(["dog", "prof"]), ["dog", "prof"], usage).ids == {"dog": (10,)}
