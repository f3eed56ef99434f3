"""WordNet 3.x database files, read directly (format: wndb(5WN)).

One line is one synset: ``offset lex_filenum type word_count(hex) word lex_id ... pointer_count pointer...
| gloss``. Lines that start with two spaces are the licence. Files may be gzip-compressed and may hold a subset:
a pointer to a synset that is absent is dropped. WordNet is a directed acyclic graph, not a tree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from jhsae.errors import UserError
from jhsae.files.bounded import MIB, read_bytes, read_gzip

FILE_BYTES = 64 * MIB  # expanded; the largest file of WordNet 3.0 has 15
LINES = 1_000_000
PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
FIRST_NOUN_FILE = 3
NOUN_FILES = (  # lexicographer files 03 to 28, in the order of lexnames(5WN)
    "Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food",
    "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time",
)  # fmt: skip


@dataclass(frozen=True)
class Synset:
    """One sense. ``id`` is e.g. ``n00007846``; ``hypernyms`` holds ids; lemma case is data (proper nouns).

    `file` is the number of its lexicographer file, WordNet's coarsest categories. `instances` are those hypernyms of
    which it is an instance (Paris of city), not a kind.
    """

    id: str
    lemmas: tuple[str, ...]
    hypernyms: tuple[str, ...]
    gloss: str
    file: int
    instances: tuple[str, ...] = ()

    @property
    def category(self) -> str | None:
        """The name of a noun's lexicographer file, such as ``animal``; None for another part of speech."""
        place = self.file - FIRST_NOUN_FILE
        return NOUN_FILES[place] if self.id[0] == "n" and 0 <= place < len(NOUN_FILES) else None

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
    return {i: _within(s, synsets) for i, s in synsets.items()}


def _within(synset: Synset, synsets: Mapping[str, Synset]) -> Synset:
    """The synset without pointers to absent ones."""
    above, instances = (tuple(h for h in ids if h in synsets) for ids in (synset.hypernyms, synset.instances))
    return replace(synset, hypernyms=above, instances=instances)


def read_table(path: Path) -> list[tuple[int, str]]:
    """The lines of a database or index file without the licence, and their line numbers from 1.

    `UserError`: no regular file, a damaged gzip file, more bytes or lines than WordNet could have.
    """
    data = read_gzip(path, FILE_BYTES) if path.suffix == ".gz" else read_bytes(path, FILE_BYTES)
    if (found := data.count(b"\n")) > LINES:
        raise UserError(f"{path} has {found:,} lines, expected at most {LINES:,}; it is no file of WordNet")
    lines = data.decode("latin-1").split("\n")
    return [(i, line) for i, line in enumerate(lines, start=1) if line.strip() and not line.startswith("  ")]


def _read_file(path: Path, part: str) -> list[Synset]:
    found = []
    for number, line in read_table(path):
        try:
            found.append(_parse(line, part))
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}, line {number}, is no synset (format wndb(5WN)); copy the file again") from error
    return found


def _parse(line: str, part: str) -> Synset:
    """One synset. ValueError or IndexError: the line is shorter than its counts."""
    fields, _, gloss = line.partition("|")
    f = fields.split()
    words = int(f[3], 16)
    start = 4 + 2 * words
    pointers, rest = int(f[start]), f[start + 1 :]
    if words < 1 or pointers < 0 or 4 * pointers > len(rest):
        raise ValueError("counts that the line does not hold")
    lemmas = tuple(w.split("(")[0].replace("_", " ") for w in f[4:start:2])
    above = [(rest[i], rest[i + 2] + rest[i + 1]) for i in range(0, 4 * pointers, 4) if rest[i] in ("@", "@i")]
    instances = tuple(synset for kind, synset in above if kind == "@i")
    return Synset(part + f[0], lemmas, tuple(synset for _, synset in above), gloss.strip(), int(f[1]), instances)


def is_heldout(synset_id: str) -> bool:
    """True for the one synset in twenty, chosen by hash, whose gloss the bundled model was not trained on."""
    return int(sha256(synset_id.encode()).hexdigest(), 16) % 20 == 0
