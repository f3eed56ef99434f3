"""WordNet 3.x database files, read directly (format: wndb(5WN)).

One line is one synset: ``offset lex_filenum type word_count(hex) word lex_id ... pointer_count pointer...
| gloss``. Lines that start with two spaces are the licence. Files may be gzip-compressed and may hold a subset:
a pointer to a synset that is absent is dropped. WordNet is a directed acyclic graph, not a tree.
"""

import gzip
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from jhsae.errors import UserError

PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}


@dataclass(frozen=True)
class Synset:
    """One sense. ``id`` is e.g. ``n00007846``; ``hypernyms`` holds ids; lemma case is data (proper nouns)."""

    id: str
    lemmas: tuple[str, ...]
    hypernyms: tuple[str, ...]
    gloss: str

    @property
    def definition(self) -> str:
        """The gloss without its quoted examples."""
        return self.gloss.split('; "')[0].strip()


def bundled() -> Path:
    """The committed subset of WordNet 3.0 (see the LICENSE beside it)."""
    return Path(str(files("jhsae"))) / "assets" / "wordnet"


def read_wndb(directory: str | Path | None = None, parts: str = "nvar") -> dict[str, Synset]:
    """Every synset of the parts of speech in `parts`, by id, in file order.

    `directory` holds ``data.noun`` and its siblings (Debian's ``/usr/share/wordnet``, NLTK's
    ``corpora/wordnet``), plain or ``.gz``; ``None`` means the bundled subset. Absent parts are skipped; it is an
    error when none is there.
    """
    folder = Path(directory) if directory is not None else bundled()
    synsets: dict[str, Synset] = {}
    for part in parts:
        for path in (folder / f"data.{PARTS[part]}", folder / f"data.{PARTS[part]}.gz"):
            if path.exists():
                synsets |= {s.id: s for s in _read_file(path, part)}
                break
    if not synsets:
        raise UserError(
            f"no WordNet database file (data.noun, data.verb, ...) in {folder}; install Debian's wordnet-base and "
            "write directory: /usr/share/wordnet, or leave it out to use the bundled subset"
        )
    return {
        i: Synset(s.id, s.lemmas, tuple(h for h in s.hypernyms if h in synsets), s.gloss) for i, s in synsets.items()
    }


def _read_file(path: Path, part: str) -> list[Synset]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="latin-1") as lines:
        return [_parse(line, part) for line in lines if not line.startswith("  ")]


def _parse(line: str, part: str) -> Synset:
    fields, _, gloss = line.partition("|")
    f = fields.split()
    words = int(f[3], 16)
    lemmas = tuple(w.split("(")[0].replace("_", " ") for w in f[4 : 4 + 2 * words : 2])
    start = 4 + 2 * words
    pointers = [f[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(f[start]))]
    hypernyms = tuple(p[2] + p[1] for p in pointers if p[0] in ("@", "@i"))
    return Synset(part + f[0], lemmas, hypernyms, gloss.strip())


def is_heldout(synset_id: str) -> bool:
    """True for the one synset in twenty, chosen by hash, whose gloss no bundled model was trained on."""
    return int(sha256(synset_id.encode()).hexdigest(), 16) % 20 == 0
