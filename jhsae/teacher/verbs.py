"""English tenses by rule, with the commonest exceptions.

A verb counts in its base form, third person, past tense, past participle and present participle, each also capitalised
(Park et al., arXiv 2406.01506: verbs by tense).
"""

import re

IRREGULAR = {
    row.split()[0]: (row.split()[1], row.split()[-1])
    for row in """
    awake awoke awoken|bear bore borne|beat beat beaten|become became become|begin began begun|bend bent|bet bet
    bind bound|bite bit bitten|bleed bled|blow blew blown|break broke broken|breed bred|bring brought|build built
    burst burst|buy bought|cast cast|catch caught|choose chose chosen|cling clung|come came come|cost cost|creep crept
    cut cut|deal dealt|dig dug|draw drew drawn|drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen
    feed fed|feel felt|fight fought|find found|flee fled|fling flung|fly flew flown|forbid forbade forbidden
    forget forgot forgotten|forgive forgave forgiven|freeze froze frozen|get got gotten|give gave given|grind ground
    grow grew grown|hang hung|hear heard|hide hid hidden|hit hit|hold held|hurt hurt|keep kept|know knew known|lay laid
    lead led|leave left|lend lent|let let|lie lay lain|light lit|lose lost|make made|mean meant|meet met|pay paid
    put put|quit quit|read read|rid rid|ride rode ridden|ring rang rung|rise rose risen|run ran run|say said
    see saw seen|seek sought|sell sold|send sent|set set|shake shook shaken|shed shed|shine shone|shoot shot
    show showed shown|shrink shrank shrunk|shut shut|sing sang sung|sink sank sunk|sit sat|sleep slept|slide slid
    speak spoke spoken|spend spent|spin spun|split split|spread spread|spring sprang sprung|stand stood
    steal stole stolen|stick stuck|sting stung|strike struck|strive strove striven|swear swore sworn|sweep swept
    swell swelled swollen|swim swam swum|swing swung|take took taken|teach taught|tear tore torn|tell told
    think thought|throw threw thrown|understand understood|wake woke woken|wear wore worn|weave wove woven|weep wept
    win won|wind wound|write wrote written
    """.replace("\n", "|").split("|")
    if row.strip()
}
PARTICIPLES = {"lie": "lying", "die": "dying", "tie": "tying"}
AUXILIARIES = frozenset(
    """
    and any are can could did does down for had has have her him his how its last may might more most much must nor
    not now off one out over own per same shall she should some such than that the their them then there these they
    this those three too two under upon was were what when where which while who whole whose why will with would you
    your thou thee thy
    """.split()  # noqa: SIM905
)
_GROUP = re.compile("[aeiouy]+")


def tenses(word: str) -> tuple[str, ...]:
    """The forms in which a verb counts, without repeats. One with a capital letter has one."""
    if word != word.lower():
        return (word,)
    past, participle = IRREGULAR.get(word, (_past(word),) * 2)
    each = (word, third_person(word), past, participle, present_participle(word))
    return tuple(dict.fromkeys((*each, *(form.capitalize() for form in each))))


def third_person(word: str) -> str:
    """He goes, carries, plays."""
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def present_participle(word: str) -> str:
    """Making, running, lying, seeing."""
    if word in PARTICIPLES:
        return PARTICIPLES[word]
    if word.endswith("e") and not word.endswith(("ee", "oe", "ye")):
        return word[:-1] + "ing"
    return _stem(word) + "ing"


def _past(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ied"
    return _stem(word) + "ed"


def _stem(word: str) -> str:
    """The last consonant is doubled in words of one short syllable: stop, plan; not visit, keep, fix."""
    short = len(_GROUP.findall(word)) == 1 and word[-1:] not in tuple("aeiouwxy")
    single = word[-2:-1] in tuple("aeiou") and word[-3:-2] not in tuple("aeiou")
    return word + word[-1] if short and single else word
