import gzip
import json
from itertools import islice

import datasets
import pytest

from jhsae.data import HuggingFaceText, TextFiles, WordNetGlosses
from jhsae.errors import UserError
from jhsae.wordnet import bundled, is_heldout, read_wndb

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
    for name in ("a.jsonl", "a.json", "a.parquet", "b.jsonl.gz"):
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
