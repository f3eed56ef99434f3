"""Features in context, for people to read: the firing token in the middle of its line, lines under each other.

A token keeps its leading space, inside its highlight; line breaks and control characters are shown as signs.
"""

import math
import re
from itertools import groupby
from typing import Any, NamedTuple

from jhsae.files.escaping import visible
from jhsae.report.reading import Json, Run

SPECIAL = re.compile(r"\s*(<\|?[\w ]+\|?>|\[(UNK|CLS|SEP|PAD|MASK)\])")
MOST_HEADWORDS = 6
Text = list[tuple[bool, str]]


class Line(NamedTuple):
    """One context: the text left and right of the firing token, in pieces that are special tokens or are not."""

    left: Text
    token: str
    right: Text
    value: str
    exact: str
    intensity: float


class Card(NamedTuple):
    """A feature with its contexts; an expert carries cards of its atoms.

    `address` is its place on a page of ``jhsae browse``; `tokens` and `coherence` are empty where they were not
    measured.
    """

    title: str
    address: str
    concept: str
    frequency: str
    coherence: str
    tokens: list[str]
    headwords: str
    lines: list[Line]
    atoms: list["Card"]


class Group(NamedTuple):
    """Cards that one rule chose, and the rule in words."""

    title: str
    cards: list[Card]


def groups(run: Run) -> list[Group]:
    """The cards of contexts.json by the rule that chose them, the most coherent first."""
    kind, letter = ("expert", "e") if run.hierarchical else ("feature", "f")
    found: dict[str, list[Card]] = {}
    for entry in run.contexts or []:
        own = _card(f"{kind} {entry['feature']}", f"{letter}{entry['feature']}", entry)
        atoms = [
            _card(f"atom {atom['atom']}", f"{own.address}/a{atom['atom']}", atom) for atom in entry.get("atoms") or []
        ]
        found.setdefault("coherence" if entry.get("chosen") == "coherence" else "frequency", []).append(
            own._replace(atoms=atoms)
        )
    titles = {
        "coherence": f"The most coherent {kind}s",
        "frequency": f"Live {kind}s at evenly spaced ranks of frequency",
    }
    return [Group(title, found[chosen]) for chosen, title in titles.items() if chosen in found]


def _card(title: str, address: str, entry: Json) -> Card:
    contexts: list[dict[str, Any]] = entry["contexts"]
    most = max((context["value"] for context in contexts), default=1.0)
    decimals = max(0, 2 - math.floor(math.log10(most))) if most > 0 else 2
    lines = [_line(context, most, decimals) for context in contexts]
    words = dict.fromkeys(line.token.strip() or "␣" for line in lines)
    headwords = " · ".join(list(words)[:MOST_HEADWORDS])
    coherence = entry.get("coherence")
    return Card(
        title=title,
        address=address,
        concept=visible(entry.get("name") or ""),
        frequency=f"{100 * entry['frequency']:.3g}%",
        coherence="" if coherence is None else f"{coherence:.2f}",
        tokens=[visible(token) for token in entry.get("tokens") or []],
        headwords=headwords,
        lines=lines,
        atoms=[],
    )


def _line(context: Json, most: float, decimals: int) -> Line:
    tokens, at, value = context["tokens"], context["at"], context["value"]
    intensity = round(max(value / most, 0.0), 2) if most > 0 else 0.0
    token = visible(tokens[at])
    return Line(_text(tokens[:at]), token, _text(tokens[at + 1 :]), f"{value:.{decimals}f}", repr(value), intensity)


def _text(tokens: list[str]) -> Text:
    """Neighbours of one kind joined, so that the page has no element per token."""
    kinds = groupby(tokens, key=lambda token: SPECIAL.fullmatch(token) is not None)
    return [(special, visible("".join(group))) for special, group in kinds]
