"""An ontology from a file of JSON lines: one object per concept, in any order::

    {"concept": "tree", "parents": ["plant"], "words": ["tree"]}
    {"concept": "oak", "parents": ["tree"], "words": ["oak", "acorn"]}
    {"concept": "walk", "part": "v", "words": ["walk", "stroll"]}

`concept` is the id and the name. `parents` may be left out at the top, `words` where a concept has only those of the
concepts below it. `part` is ``n`` (nouns, counted in the plural too; the default) or ``v`` (verbs, in every tense).
"""

from pathlib import Path

from jhsae.errors import UserError
from jhsae.files.bounded import MIB, as_object, parse_json, read_bytes
from jhsae.files.forms import TEXT, check
from jhsae.teacher.ontology import Ontology

FILE_BYTES = 64 * MIB
LINES = 1_000_000
FORM = {"concept": TEXT, "parents?": [TEXT], "words?": [TEXT], "part?": TEXT}


def from_edges(path: str | Path) -> Ontology:
    """Reads an ontology.

    Args:
        path: The file.

    Raises:
        UserError: No such file, a line that is no concept, a concept twice, an unknown parent, a cycle, or a concept
            that has no words, nor any concept below it that has.
    """
    data = read_bytes(path, FILE_BYTES)
    if (found := data.count(b"\n")) > LINES:
        raise UserError(f"{path} has {found:,} lines, expected at most {LINES:,}; it is no ontology")
    words: dict[str, tuple[str, ...]] = {}
    parents: dict[str, tuple[str, ...]] = {}
    verbs: set[str] = set()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        concept = as_object(parse_json(line, place), place)
        check(concept, FORM, place)
        name, part = concept["concept"], concept.get("part") or "n"
        if name in words:
            raise UserError(
                f"{place}: the concept {name!r} stands in an earlier line too; write it once, with all parents"
            )
        if part not in ("n", "v"):
            raise UserError(f"{place}: part is {part!r}, expected 'n' (nouns) or 'v' (verbs)")
        words[name] = tuple(dict.fromkeys(concept.get("words") or ()))
        parents[name] = tuple(dict.fromkeys(concept.get("parents") or ()))
        verbs |= {name} if part == "v" else set()
    if not words:
        raise UserError(f"{path} holds no concept; write one JSON object per line (concept, parents, words)")
    ontology = Ontology({name: name for name in words}, words, parents, {}, frozenset(verbs))
    _check_words(ontology, path)
    return ontology


def _check_words(ontology: Ontology, path: str | Path) -> None:
    """Raises `UserError` for a concept without words at or below it, and for a graph that is not acyclic."""
    has: set[str] = set()
    try:
        order = ontology.upwards
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for i in order:
        if ontology.words[i] or any(child in has for child in ontology.children[i]):
            has.add(i)
        else:
            raise UserError(f"{path}: the concept {i!r} has no words, nor any concept below it; write its words")
