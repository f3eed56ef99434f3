import bz2
import gzip
import json
import lzma
import os
import re
from collections import Counter
from itertools import islice

import datasets
import pytest

from jhsae.data import HuggingFaceText, TextFiles, WordNetGlosses
from jhsae.data import reading as reading_module
from jhsae.data import rows as rows_module
from jhsae.data.reading import _hub_rows
from jhsae.data.wordnet import bundled, is_heldout, read_wndb
from jhsae.errors import UserError

ROWS = [{"text": "one two", "n": 1}, {"text": "", "n": 2}, {"text": "three", "n": 3}]


def jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def test_paragraphs_are_documents_plain_and_gzipped(tmp_path):
    text = "\n\na first\nparagraph\n \n\nthe second, ünïcode\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    expected = ["a first\nparagraph", "the second, ünïcode"]
    assert list(TextFiles(str(tmp_path / "a.txt")).documents()) == expected
    both = TextFiles([str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")])
    assert list(both.documents()) == expected * 2


def test_rows_of_jsonl_json_parquet_and_gzip_are_documents(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    packed = gzip.compress((tmp_path / jsonl(tmp_path / "a.jsonl")).read_bytes())
    (tmp_path / "b.jsonl.gz").write_bytes(packed)
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "d.jsonl.bz2").write_bytes(bz2.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.jsonl", "a.json", "a.parquet", "b.jsonl.gz", "c.jsonl.xz", "d.jsonl.bz2"):
        assert list(TextFiles(str(tmp_path / name)).documents()) == ["one two", "three"], name
    assert list(TextFiles(str(tmp_path / "a.jsonl")).documents()) == ["one two", "three"]


def test_a_local_hugging_face_dataset_is_read_in_each_of_its_forms(tmp_path):
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "files").mkdir()
    jsonl(tmp_path / "files" / "train.jsonl")
    for folder in ("one", "splits", "files"):
        assert list(HuggingFaceText(str(tmp_path / folder)).documents()) == ["one two", "three"], folder


def test_wordnet_documents_are_lemmas_and_gloss_and_the_splits_part_them(tmp_path):
    with gzip.open(bundled() / "data.noun.gz", "rt", encoding="latin-1") as lines:
        (tmp_path / "data.noun").write_text("".join(islice(lines, 500)), encoding="latin-1")
    whole, train, heldout = (
        list(WordNetGlosses(str(tmp_path), split).documents()) for split in ("all", "train", "heldout")
    )
    synsets = read_wndb(tmp_path)
    assert whole[0].startswith("entity: that which is perceived")
    assert len(whole) == len(synsets) and sorted(train + heldout) == sorted(whole)
    assert len(heldout) == sum(is_heldout(i) for i in synsets)


def test_describe_is_json_and_names_what_was_read(tmp_path):
    path = jsonl(tmp_path / "a.jsonl")
    for source in (TextFiles(path), HuggingFaceText("some/name", config="en"), WordNetGlosses()):
        assert json.loads(json.dumps(source.describe()))["source"] == type(source).__name__
    described = TextFiles(path).describe()["files"][0]
    assert described["bytes"] > 0 and len(described["sha256"]) == 64


def failing(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": oops\n')
    (tmp_path / "a.pdf").write_text("x")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    return {
        TextFiles(str(tmp_path / "row.jsonl")): "row.jsonl does not exist; did you mean 'rows.jsonl'?",
        TextFiles(str(tmp_path)): "is a folder, a text file was expected",
        TextFiles(str(tmp_path / "a.pdf")): r"unknown kind; expected \.txt, \.jsonl, \.json, \.parquet",
        TextFiles(path, column="txt"): "has no column 'txt'; did you mean 'text'?",
        TextFiles(path, column="n"): "column 'n' of .* holds int, text was expected",
        TextFiles(str(tmp_path / "latin.txt")): "latin.txt is not readable as UTF-8 text",
        TextFiles(str(tmp_path / "broken.jsonl")): "broken.jsonl cannot be read",
        TextFiles(str(tmp_path / "empty.txt")): "an empty dataset: TextFiles",
        TextFiles(str(tmp_path / "empty.jsonl")): "an empty dataset: TextFiles",
        HuggingFaceText(str(tmp_path / "split")): "split does not exist; did you mean 'splits'?",
        HuggingFaceText(str(tmp_path / "splits"), split="trian"): "no split 'trian'; did you mean 'train'?",
        HuggingFaceText("nobody/nothing"): "the dataset nobody/nothing cannot be opened",
        WordNetGlosses(split="held"): "no split 'held'; did you mean 'heldout'?",
        WordNetGlosses(str(tmp_path)): "no WordNet database file",
    }


def test_whatever_cannot_be_read_is_a_sentence(tmp_path):
    for source, message in failing(tmp_path).items():
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            list(source.documents())
    with pytest.raises(UserError, match="an empty dataset: paths names no file"):
        TextFiles([]).documents()


def read(source):
    """The documents and what was skipped."""
    skipped = Counter()
    return list(source.documents(skipped)), dict(skipped)


def test_rows_without_text_are_skipped_and_counted(tmp_path):
    lines = [{"x": 1}, {"text": None}, {"text": "a"}, {"text": ""}, {"text": " "}, {"text": "\ud800"}, {"text": "b"}]
    found = read(TextFiles(jsonl(tmp_path / "a.jsonl", lines)))
    assert found == (["a", "b"], {"null or missing": 2, "empty": 2, "not Unicode": 1})
    datasets.Dataset.from_list([{"text": t} for t in ("a", None, "b")]).to_parquet(str(tmp_path / "a.parquet"))
    assert read(TextFiles(str(tmp_path / "a.parquet"))) == (["a", "b"], {"null or missing": 1})
    jsonl(tmp_path / "none.jsonl", [{"text": None}])
    with pytest.raises(UserError, match="holds no text; 1 rows are null or missing"):
        read(TextFiles(str(tmp_path / "none.jsonl")))


def test_columns_that_are_not_read_stop_nothing(tmp_path):
    texts = [f"t{i}" for i in range(8)]
    others = ["1", '"x"', "[1, {}]", "NaN", "9" * 6000, '"2021-99-01"', '{"a": {"b": null}}', '"\\ud800"']
    lines = [f'{{"m": {other}, "text": "{text}"}}' for text, other in zip(texts, others, strict=True)]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, '{"text": "t8", "text": "2020-01-01", "n": 1}']))
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(b'\n{"text": "t9", "m": "\xff"}\n{"m": ' + b"[" * 10**5 + b"]" * 10**5 + b', "text": "no"}')
    expected = ([*texts, "2020-01-01", "t9"], {"nested too deeply": 1})
    assert read(TextFiles(str(tmp_path / "train.jsonl"))) == expected
    assert read(HuggingFaceText(str(tmp_path))) == expected == read(HuggingFaceText(str(tmp_path), streaming=False))
    assert [row["text"] for row in _hub_rows(str(tmp_path / "train.jsonl"), "text") if isinstance(row, dict)] == [
        *expected[0]
    ]


def test_an_array_is_read_as_its_rows_are_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "BLOCK", 7)
    for indent in (None, 2):
        lines = [{"text": "a, ]", "m": [1]}, {"text": "ü" * 50}, {"m": 1}]
        (tmp_path / "a.json").write_text(json.dumps(lines, indent=indent, ensure_ascii=False))
        assert read(TextFiles(str(tmp_path / "a.json"))) == (["a, ]", "ü" * 50], {"null or missing": 1})
    (tmp_path / "a.json").write_text('["one", "two"]\n')
    assert read(TextFiles(str(tmp_path / "a.json")))[0] == ["one", "two"]


def test_a_mark_in_front_and_carriage_returns_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    assert list(TextFiles(str(tmp_path / "a.txt")).documents()) == ["one\ntwo", "three"]
    assert list(TextFiles(str(tmp_path / "a.jsonl")).documents()) == ["a", "b"]


def broken(tmp_path):
    """Files whose first rows are right, and the sentence that each ends in."""
    whole = "".join(json.dumps({"text": f"document {i} " * 20}) + "\n" for i in range(300)).encode()
    datasets.Dataset.from_list([{"text": str(i)} for i in range(3000)]).to_parquet(str(tmp_path / "whole.parquet"))
    parquet = (tmp_path / "whole.parquet").read_bytes()
    packed = gzip.compress(whole)
    damaged = packed[: len(packed) // 2] + b"\xff" + packed[len(packed) // 2 + 1 :]
    return {
        "int.jsonl": (b'{"text": "a"}\n{"text": 5}\n', r"'text' of .*int.jsonl holds int, text was expected \(row 2\)"),
        "bool.json": (b'["a", {"text": true}]', r"bool.json holds bool, text was expected \(row 2\)"),
        "list.jsonl": (b'{"text": null}\n{"text": ["a"]}\n', r"list.jsonl holds list, .* \(row 2\)"),
        "rows.jsonl": (b'{"text": "a"}\n[1]\n', "rows.jsonl, row 2, holds list, expected an object"),
        "cut.jsonl": (whole[:-9], "cut.jsonl cannot be read: line 300 is not JSON"),
        "cut.json": (b'["a", "b', "cut.json cannot be read: row 2 is not JSON"),
        "two.json": (b'["a"] ["b"]', "two.json holds more than one JSON array"),
        "cut.jsonl.gz": (packed[: len(packed) // 2], "cut.jsonl.gz cannot be read: Compressed file ended"),
        "cut.txt.gz": (packed[: len(packed) // 2], "cut.txt.gz is not readable"),
        "damaged.jsonl.gz": (damaged, "damaged.jsonl.gz cannot be read"),
        "damaged.txt.gz": (damaged, "damaged.txt.gz is not readable"),
        "cut.jsonl.bz2": (bz2.compress(whole)[:-9], "cut.jsonl.bz2 cannot be read"),
        "cut.txt.xz": (lzma.compress(whole)[:-9], "cut.txt.xz is not readable"),
        "cut.parquet": (parquet[:-50], "cut.parquet cannot be read"),
        "wide.txt": (b"a\n\xff\xfe\n", "wide.txt is not readable as UTF-8 text .*convert it"),
        "wide.jsonl": ('{"text": "a"}'.encode("utf-16"), "wide.jsonl cannot be read: line 1 is not JSON"),
        "a.jsonl.zst": (b"a", "unknown kind"),
    }


def test_files_that_break_off_or_change_are_a_sentence(tmp_path):
    for name, (data, message) in broken(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            read(TextFiles(str(tmp_path / name)))


def test_a_row_without_an_end_is_not_held_in_memory(tmp_path, monkeypatch):
    for module in (rows_module, reading_module):
        monkeypatch.setattr(module, "ROW_BYTES", 1000)
    ends = {"a.txt": b"x", "b.jsonl": b'{"text": "', "c.json": b'["', "d.txt": b"x\n" * 600}
    for name, start in ends.items():
        (tmp_path / name).write_bytes(start + b"a" * 2000 * (name != "d.txt"))
        with pytest.raises(UserError, match=r"more than 1,000|not JSON"):
            read(TextFiles(str(tmp_path / name)))


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "train.jsonl")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for source in (
        TextFiles(str(tmp_path / "train.jsonl")),
        TextFiles(str(tmp_path / "zero.txt")),
        HuggingFaceText(str(tmp_path)),
    ):
        with pytest.raises(UserError, match="is a FIFO, a device or a socket, expected a file"):
            source.documents()


def options_that_do_not_apply(tmp_path):
    """Sources each with an option that says nothing about what it names."""
    jsonl(tmp_path / "a.jsonl")
    named = datasets.Dataset.from_list(ROWS, split="train")
    named.save_to_disk(str(tmp_path / "named"))
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "unnamed"))
    datasets.DatasetDict({"train": named}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "files").mkdir()
    jsonl(tmp_path / "files" / "train.jsonl")
    (tmp_path / "plain.txt").write_text("a")
    named, unnamed, splits, files = (str(tmp_path / name) for name in ("named", "unnamed", "splits", "files"))
    return {
        HuggingFaceText(named, split="test"): "was saved as the split 'train', but split is 'test'; write split: train",
        HuggingFaceText(named, split="train[:10%]"): "but split is",
        HuggingFaceText(unnamed, split="test"): "was saved without splits, but split is 'test'",
        HuggingFaceText(splits, split="train[:10%]"): "has no split",
        HuggingFaceText(files, split="test"): "has no split 'test'; known: train",
        HuggingFaceText(files, split="train[:10%]"): "has no split",
        HuggingFaceText(named, config="en"): "config is 'en'",
        HuggingFaceText(splits, revision="main"): "revision is 'main'",
        HuggingFaceText(files, revision="main"): "revision is 'main'",
        HuggingFaceText(files, config="en"): "'en' not found",
        TextFiles(str(tmp_path / "plain.txt"), column="body"): "column is 'body'",
        HuggingFaceText(""): "name is empty",
    }


def test_an_option_that_does_not_apply_is_refused(tmp_path):
    for source, message in options_that_do_not_apply(tmp_path).items():
        with pytest.raises(UserError, match=re.escape(message)):
            source.documents()


def test_the_manifest_names_the_split_that_was_read(tmp_path):
    options_that_do_not_apply(tmp_path)
    assert HuggingFaceText(str(tmp_path / "named")).describe()["split"] == "train"
    assert HuggingFaceText(str(tmp_path / "unnamed")).describe()["split"] is None
    assert HuggingFaceText(str(tmp_path / "files")).describe()["split"] == "train"


def test_no_script_of_a_dataset_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "ran"
    (tmp_path / "evil").mkdir()
    for place in ("evil.py", "evil/evil.py", "json.py"):
        (tmp_path / place).write_text(f"open({str(mark)!r}, 'w')")
    jsonl(tmp_path / "a.jsonl")
    for name in ("evil.py", "./evil", "evil", "json"):
        with pytest.raises(UserError):
            HuggingFaceText(name).documents()
    assert not mark.exists()
