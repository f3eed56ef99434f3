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
    """A feature with its contexts; an expert carries cards of its atoms."""

    title: str
    concept: str
    frequency: str
    headwords: str
    lines: list[Line]
    atoms: list["Card"]


def cards(run: Run) -> list[Card]:
    """One card per feature of contexts.json, in its order."""
    kind = "expert" if run.hierarchical else "feature"
    return [
        _card(f"{kind} {entry['feature']}", entry)._replace(
            atoms=[_card(f"atom {atom['atom']}", atom) for atom in entry.get("atoms") or []]
        )
        for entry in run.contexts or []
    ]


def _card(title: str, entry: Json) -> Card:
    contexts: list[dict[str, Any]] = entry["contexts"]
    most = max((context["value"] for context in contexts), default=1.0)
    decimals = max(0, 2 - math.floor(math.log10(most))) if most > 0 else 2
    lines = [_line(context, most, decimals) for context in contexts]
    words = dict.fromkeys(line.token.strip() or "␣" for line in lines)
    headwords = " · ".join(list(words)[:MOST_HEADWORDS])
    return Card(title, visible(entry.get("name") or ""), f"{100 * entry['frequency']:.3g}%", headwords, lines, [])


def _line(context: Json, most: float, decimals: int) -> Line:
    tokens, at, value = context["tokens"], context["at"], context["value"]
    intensity = round(max(value / most, 0.0), 2) if most > 0 else 0.0
    token = visible(tokens[at])
    return Line(_text(tokens[:at]), token, _text(tokens[at + 1 :]), f"{value:.{decimals}f}", repr(value), intensity)


def _text(tokens: list[str]) -> Text:
    """Neighbours of one kind joined, so that the page has no element per token."""
    kinds = groupby(tokens, key=lambda token: SPECIAL.fullmatch(token) is not None)
    return [(special, visible("".join(group))) for special, group in kinds]
