"""An ontology of JSON lines, and every way in which such a file can be wrong."""

import json

import pytest

from jhsae.errors import UserError
from jhsae.teacher import from_edges

PLANTS = [
    {"concept": "oak", "parents": ["tree"], "words": ["oak", "acorn", "oak"]},
    {"concept": "tree", "parents": ["plant"], "words": []},
    {"concept": "plant"},
    {"concept": "walk", "part": "v", "words": ["walk"]},
]


def write(path, *lines):
    path.write_text("\n\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_concepts_stand_in_any_order_and_the_last_line_needs_no_end(tmp_path):
    found = from_edges(write(tmp_path / "o.jsonl", *PLANTS))
    assert found.parents == {"oak": ("tree",), "tree": ("plant",), "plant": (), "walk": ()}
    assert found.hyponym_words("plant") == {"oak", "acorn"} and found.words["oak"] == ("oak", "acorn")
    assert found.part("walk") == "v" and found.part("oak") == "n"
    assert found.lexicon("v") == {"walk"} and found.find("acorn") == "oak"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no concept"),
        (["oak\ttree"], "line 1 cannot be read as JSON"),
        (["[]"], "line 1 holds a list, expected a JSON object"),
        ([{"parents": []}], "line 1.*concept"),
        ([{"concept": "a", "words": "b"}], "line 1.*words"),
        ([{"concept": "a", "words": [1]}], "line 1.*words"),
        ([{"concept": "a", "words": ["b"], "part": "x"}], "part is 'x', expected 'n'"),
        ([*PLANTS, PLANTS[0]], "line 9: the concept 'oak' stands in an earlier line"),
        ([{"concept": "a", "parents": ["b"], "words": ["c"]}], "'a' has the parent 'b', which is not in the ontology"),
        ([{"concept": "a", "parents": ["a"], "words": ["c"]}], "has a cycle at or above 'a'"),
        (
            [{"concept": a, "parents": [b], "words": ["c"]} for a, b in ("ab", "bc", "ca")],
            "o.jsonl: the ontology has a cycle",
        ),
        ([*PLANTS, {"concept": "fern", "parents": ["plant"]}], "'fern' has no words, nor any concept below it"),
    ],
)
def test_what_is_no_ontology_is_one_sentence(tmp_path, lines, message):
    with pytest.raises(UserError, match=message) as refused:
        from_edges(write(tmp_path / "o.jsonl", *lines))
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        from_edges(tmp_path / "nothing")
    with pytest.raises(UserError, match="is a folder"):
        from_edges(tmp_path)
