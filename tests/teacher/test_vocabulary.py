import pytest

from jhsae.teacher.verbs import tenses
from jhsae.teacher.vocabulary import Vocabulary, forms, plural, single_tokens


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


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("walk", "walk walks walked walking"),
        ("stop", "stop stops stopped stopping"),
        ("visit", "visit visits visited visiting"),
        ("keep", "keep keeps kept keeping"),
        ("carry", "carry carries carried carrying"),
        ("play", "play plays played playing"),
        ("move", "move moves moved moving"),
        ("agree", "agree agrees agreed agreeing"),
        ("fix", "fix fixes fixed fixing"),
        ("write", "write writes wrote written writing"),
        ("lie", "lie lies lay lain lying"),
        ("run", "run runs ran running"),
        ("put", "put puts putting"),
    ],
)
def test_a_verb_has_its_tenses_small_and_capitalised(word, forms):
    small = forms.split()
    assert tenses(word) == (*small, *(form.capitalize() for form in small))


def test_a_word_has_other_tokens_as_a_noun_than_as_a_verb():
    found = single_tokens(Tokenizer(["run", "runs", "ran", "come", "will"]), ["run"], {}, ["run", "come", "will"])
    assert found.of("run", "n") == (10, 11) and found.of("run", "v") == (10, 11, 12)
    assert found.of("come", "v") == (13,) and found.of("come", "n") == () and found.of("will", "v") == ()
    assert found.lemmas() == {10: "run", 11: "run", 12: "run", 13: "come"}
    assert found.words() == {"run", "come"} and found.surface[12] == "ran"


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


def test_words_that_are_held_out_are_gone_with_all_their_forms():
    words = [f"word{i}" for i in range(10)]
    ids = {w: (2 * i, 2 * i + 1) for i, w in enumerate(words)} | {"Word0": (30,), "shared": (0, 40)}
    surface = {i: f"s{i}" for own in ids.values() for i in own}
    whole = Vocabulary(ids, surface, {"word1": (50,)})
    assert whole.known(0.0, 3) == whole and whole.known(0.3, 3) == whole.known(0.3, 3)
    assert not whole.known(1.0, 3).ids and not whole.known(1.0, 3).surface
    for seed in range(20):
        part = whole.known(0.3, seed)
        gone = {w.lower() for w in whole.words()} - {w.lower() for w in part.words()}
        assert len(gone) >= 3 and ("word0" in gone) == ("Word0" not in part.ids)
        if "word0" in gone and "shared" in part.ids:
            assert part.ids["shared"] == (40,)  # token 0 is a form of word0 too
        assert {i for own in (*part.ids.values(), *part.verbs.values()) for i in own} <= {*part.surface, 50}
    assert {w for seed in range(9) for w in whole.known(0.3, seed).ids} >= set(words)
