import gzip
import os
from pathlib import Path

import pytest

from jhsae.data.wordnet import bundled, is_heldout, read_wndb
from jhsae.errors import UserError
from jhsae.teacher import from_wordnet

LINES = (
    "  1 This software and database is being provided to you, the LICENSEE  \n"
    "00000001 03 n 01 entity 0 000 | that which exists  \n"
    '00000002 03 n 02 living_thing 0 animate_thing 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | alive; "a cat"  \n'
    "00000003 03 n 01 Felix 0 003 @i 00000002 n 0000 @ 00000009 n 0000 ! 00000001 n 0101 | a cat  \n"
)


@pytest.mark.parametrize("name", ["data.noun", "data.noun.gz"])
def test_lines_are_read_plain_and_compressed(tmp_path, name):
    body = LINES.encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(body) if name.endswith("gz") else body)
    synsets = read_wndb(tmp_path)
    assert list(synsets) == ["n00000001", "n00000002", "n00000003"]
    living, felix = synsets["n00000002"], synsets["n00000003"]
    assert living.lemmas == ("living thing", "animate thing")
    assert living.hypernyms == ("n00000001",)
    assert (living.gloss, living.definition) == ('alive; "a cat"', "alive")
    assert felix.lemmas == ("Felix",)  # case is data
    assert felix.hypernyms == ("n00000002",)  # instances count, absent synsets and antonyms do not
    assert felix.instances == ("n00000002",) and living.instances == ()


def test_a_folder_without_wordnet_is_named(tmp_path):
    with pytest.raises(UserError, match="no WordNet database file"):
        read_wndb(tmp_path)


def test_the_bundled_subset_is_closed_upwards():
    synsets = read_wndb()
    assert len(synsets) == 16_325
    assert [i for i, s in synsets.items() if not s.hypernyms] == ["n00001740"]
    assert synsets["n00001740"].lemmas == ("entity",)


def test_the_bundled_subset_holds_every_heldout_noun():
    """One noun in twenty of the 82,115 is held out."""
    assert sum(map(is_heldout, read_wndb())) == 4094


def test_the_bundled_subset_comes_with_its_licence():
    licence = (bundled() / "LICENSE").read_text()
    for path in bundled().glob("*.gz"):
        assert b"WordNet 3.0 Copyright 2006 by Princeton University" in gzip.decompress(path.read_bytes())[:2000]
    assert "Princeton University makes no representations".lower() in licence.replace("\n", " ").lower()


@pytest.mark.slow
def test_the_whole_of_wordnet_has_its_published_counts():
    """Debian's wordnet-base, or the folder in JHSAE_WORDNET."""
    folder = Path(os.environ.get("JHSAE_WORDNET", "/usr/share/wordnet"))
    if not (folder / "data.verb").exists():
        pytest.skip(f"no WordNet database in {folder}; install wordnet-base, or set JHSAE_WORDNET to its folder")
    nouns, verbs = read_wndb(folder, "n"), read_wndb(folder, "v")
    instances = sum(len(s.instances) for s in nouns.values())
    assert len(nouns) == 82_115 and instances == 8_577
    assert sum(len(s.hypernyms) for s in nouns.values()) - instances == 75_850
    assert len(verbs) == 13_767 and sum(len(s.hypernyms) for s in verbs.values()) == 13_239
    both = from_wordnet(folder, "nv", senses=1)
    assert len(both.upwards) == 82_115 + 13_767  # no cycle
    assert "run" in both.hyponym_words(both.find("travel.v.01"))


ENTRY = "00000001 03 n 01 entity 0 000 | that which is  \n"


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "00000001 03 n 01 entity 0",
        "00000001 03 n zz entity 0 000 | a",
        "00000001 03 n 00 000 | a",
        "00000001 03 n 09 entity 0 000 | a",
        "00000001 03 n 01 entity 0 999999999 @ 1 n 0 | a",
        "00000001 03 n 01 entity 0 -01 | a",
        "00000001 03 n 01 entity 0 001 @ 00000001 | a",
    ],
)
def test_a_line_that_is_no_synset(tmp_path, line):
    (tmp_path / "data.noun").write_text("  1 licence\n" + ENTRY + line + "\n")
    with pytest.raises(UserError, match=r"data\.noun, line 3, is no synset"):
        read_wndb(tmp_path, "n")


def test_a_gzip_file_that_is_damaged_and_one_that_is_no_file(tmp_path):
    (tmp_path / "data.noun.gz").write_bytes(gzip.compress(ENTRY.encode())[:-5])
    with pytest.raises(UserError, match="cannot be read as gzip"):
        read_wndb(tmp_path, "n")
    (tmp_path / "data.noun").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read_wndb(tmp_path, "n")
