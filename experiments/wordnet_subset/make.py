"""Make the committed WordNet 3.0 subset ``jhsae/assets/wordnet`` from a full WordNet (see README.md).

    python experiments/wordnet_subset/make.py /usr/share/wordnet jhsae/assets/wordnet

A synset scores max over its lemmas of (occurrences of the lemma in all WordNet glosses) / (its sense rank)^2;
the best `TRAIN` are kept, all held-out nouns, and every hypernym of either up to ``entity``. Deterministic.
"""

import gzip
import re
import sys
from collections import Counter
from pathlib import Path

from jhsae.data.wordnet import Synset, is_heldout, read_wndb

TRAIN = 9_000
WORD = re.compile(r"[a-z]+")


def ancestors(ids: set[str], synsets: dict[str, Synset]) -> set[str]:
    """`ids` and everything above them."""
    seen, todo = set(ids), list(ids)
    while todo:
        for parent in synsets[todo.pop()].hypernyms:
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return seen


def read_index(path: Path) -> dict[str, tuple[str, list[str]]]:
    """lemma (lower case) -> (its line of index.noun, synset ids in order of sense)."""
    index = {}
    for line in path.read_text("latin-1").splitlines():
        if not line.startswith("  "):
            fields = line.split()
            index[fields[0]] = (line.rstrip(), ["n" + o for o in fields[-int(fields[2]) :]])
    return index


def choose(synsets: dict[str, Synset], counts: Counter[str], index: dict) -> set[str]:
    """Ids of the subset."""
    score: dict[str, float] = {}
    for lemma, (_, senses) in index.items():
        if WORD.fullmatch(lemma) and len(lemma) > 2:
            for rank, sense in enumerate(senses, start=1):
                score[sense] = max(score.get(sense, 0.0), counts[lemma] / rank**2)
    train = sorted((i for i in score if not is_heldout(i)), key=lambda i: (-score[i], i))[:TRAIN]
    held = {i for i in synsets if is_heldout(i)}
    return ancestors(set(train) | held, synsets)


def data_line(line: str, keep: set[str]) -> str:
    """The line with only the hypernym pointers to kept synsets."""
    head, _, gloss = line.rstrip().partition("|")
    f = head.split()
    start = 4 + 2 * int(f[3], 16)
    pointers = [f[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(f[start]))]
    kept = [p for p in pointers if p[0] in ("@", "@i") and "n" + p[1] in keep]
    flat = [word for p in kept for word in p]
    return " ".join([*f[:start], f"{len(kept):03d}", *flat, "|" + gloss])


def main(source: Path, target: Path) -> None:
    every = read_wndb(source)
    counts: Counter[str] = Counter()
    for synset in every.values():
        counts.update(WORD.findall(synset.gloss.lower()))
    nouns = {i: s for i, s in every.items() if i.startswith("n")}
    index = read_index(source / "index.noun")
    keep = choose(nouns, counts, index)
    lines = (source / "data.noun").read_text("latin-1").splitlines()
    licence = [line for line in lines if line.startswith("  ")]
    data = [data_line(line, keep) for line in lines if not line.startswith("  ") and "n" + line[:8] in keep]
    senses = [line for line, ids in index.values() if keep & set(ids)]
    target.mkdir(parents=True, exist_ok=True)
    for name, body in (("data.noun.gz", data), ("index.noun.gz", senses)):
        text = "\n".join([*(line.rstrip() for line in licence), *body, ""]).encode("latin-1")
        (target / name).write_bytes(gzip.compress(text, compresslevel=9, mtime=0))
    (target / "LICENSE").write_text("".join(re.sub(r"^ +\d+ ?", "", line).rstrip() + "\n" for line in licence))
    heldout = sum(map(is_heldout, keep))
    print(f"{len(keep)} synsets, {heldout} held out; {sum(len(line) for line in data)} characters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
