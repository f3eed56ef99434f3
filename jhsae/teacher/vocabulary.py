"""Words of an ontology that are single tokens of a model.

A word counts when the tokenizer makes exactly one token of it with a space before it. As in Park et al.
(arXiv 2406.01506) a noun counts in its forms: lower case, plural and both capitalised; a verb in its tenses
(`jhsae.teacher.verbs`). Words that WordNet has as nouns but that are hardly ever used as one ("in" the unit, "will" the
faculty) do not count, nor do tokens that mostly start longer words ("prof").
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jhsae.teacher.verbs import AUXILIARIES, tenses

IRREGULAR = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "tooth": "teeth",
    "woman": "women",
}
FUNCTION_WORDS = frozenset(
    """
    a an and any are as at be but by can come could did do does down for from get go had has have he her
    him his how i if in into is it its last like made make may me might more most much must my no none
    nor not now of off on one or out over own per same see she should so some such than that the their
    them then there these they this those three to too two under up upon us was we were what when where
    which while who whole whose why will with would you your thou thee thy
    """.split()  # noqa: SIM905
)


# A Hugging Face tokenizer. Not a Protocol: its token ids are found by __getattr__, which isinstance no longer
# looks through from Python 3.12 on.
Tokenizer = Any


@dataclass(frozen=True)
class Vocabulary:
    """Single-token forms of words.

    Args:
        ids: Noun -> ids of its forms; words without any are absent.
        surface: Id -> form.
        verbs: Verb -> ids of its forms.
    """

    ids: dict[str, tuple[int, ...]]
    surface: dict[int, str]
    verbs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, word: str, part: str) -> tuple[int, ...]:
        """The ids of a word's forms as a noun (``n``) or as a verb (``v``); none of an unknown word."""
        return (self.verbs if part == "v" else self.ids).get(word, ())

    def words(self) -> set[str]:
        """Words with a single-token form."""
        return {*self.ids, *self.verbs}

    def lemmas(self) -> dict[int, str]:
        """id -> the (first) word that it is a form of."""
        every = [*self.ids.items(), *self.verbs.items()]
        return {i: word for word, ids in reversed(every) for i in ids}

    def known(self, held_out: float, seed: int) -> "Vocabulary":
        """Without the share `held_out` of its words, drawn at random, and without any token that is a form of them.

        Words that differ in case alone are held out together.
        """
        spelled = sorted({word.lower() for word in self.words()})
        order = np.random.default_rng(seed).permutation(len(spelled))
        left_out = {spelled[i] for i in order[: round(held_out * len(spelled))]}
        every = [*self.ids.items(), *self.verbs.items()]
        hidden = {i for word, ids in every if word.lower() in left_out for i in ids}

        def kept(words: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
            found = {word: tuple(i for i in ids if i not in hidden) for word, ids in words.items()}
            return {word: ids for word, ids in found.items() if ids}

        surface = {i: form for i, form in self.surface.items() if i not in hidden}
        return Vocabulary(kept(self.ids), surface, kept(self.verbs))


def plural(word: str) -> str:
    """English plural by rule, with the commonest exceptions."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def forms(word: str) -> tuple[str, ...]:
    """The forms in which a noun counts, without repeats. A proper noun has one."""
    if word != word.lower():
        return (word,)
    many = plural(word)
    return tuple(dict.fromkeys((word, many, word.capitalize(), many.capitalize())))


def single_tokens(
    tokenizer: Tokenizer, words: Iterable[str], usage: Mapping[str, int], verbs: Iterable[str] = ()
) -> Vocabulary:
    """The nouns and verbs of at least three letters that are one token in some form.

    Args:
        tokenizer: A Hugging Face tokenizer.
        words: Nouns.
        usage: Counts of words (any, not nouns alone) in some text, to detect tokens that are mostly word pieces.
        verbs: Verbs.
    """
    pieces = _pieces(tokenizer, usage)
    surface: dict[int, str] = {}

    def ids(
        words: Iterable[str], excluded: frozenset[str], inflect: Callable[[str], tuple[str, ...]]
    ) -> dict[str, tuple[int, ...]]:
        chosen = sorted({w for w in words if len(w) > 2 and " " not in w and w.lower() not in excluded})
        pairs = [(word, form) for word in chosen for form in inflect(word)]
        found: dict[str, list[int]] = {}
        for (word, form), tokens in zip(pairs, _encode(tokenizer, [f for _, f in pairs]), strict=True):
            if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id and tokens[0] not in pieces:
                found.setdefault(word, []).append(int(tokens[0]))
                surface.setdefault(int(tokens[0]), form)
        return {w: tuple(dict.fromkeys(i)) for w, i in found.items()}

    return Vocabulary(ids(words, FUNCTION_WORDS, forms), surface, ids(verbs, AUXILIARIES, tenses))


def _encode(tokenizer: Tokenizer, words: list[str]) -> list[list[int]]:
    return tokenizer([" " + w for w in words], add_special_tokens=False)["input_ids"] if words else []


def _pieces(tokenizer: Tokenizer, usage: Mapping[str, int]) -> set[int]:
    """Tokens that start a longer word more often than they are a word."""
    whole: Counter[int] = Counter()
    for (_, count), tokens in zip(usage.items(), _encode(tokenizer, list(usage)), strict=True):
        if tokens:  # a tokenizer without bytes and without an unknown token may give none
            whole[tokens[0]] += count if len(tokens) == 1 else -count
    return {token for token, balance in whole.items() if balance < 0}
