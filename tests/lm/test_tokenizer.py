"""Tokenizers are read within limits, run no code, and belong to the model that they come with."""

import json
import os

import numpy as np
import pytest
from lm.tiny import tiny
from tokenizers import AddedToken

from jhsae import lm
from jhsae.errors import UserError
from jhsae.lm.tokenizer import read_tokenizer


@pytest.fixture
def folder(tmp_path):
    lm.save(*tiny(), tmp_path / "model", dtype=np.float32)
    return tmp_path / "model"


def edit(folder, name, **changes):
    file = folder / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "cannot be read"),
        ("[]", "holds a list, expected a JSON object"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"version": "1.0", "model": 3}', "cannot be read"),
        (
            '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"": -1}}}',
            "cannot be read",
        ),
        ('{"version": "1.0", "added_tokens": [{"id": 1}], "model": {"type": "BPE", "vocab": {}}}', "cannot be read"),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(folder, text, message):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=message):
        lm.load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"])
def test_a_pipe_is_not_read(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name} is a FIFO"):
        lm.load(folder)


def test_a_file_that_is_too_large_is_not_read(folder):
    os.truncate(folder / "tokenizer.json", 10**10)
    with pytest.raises(UserError, match="has 10,000,000,000 bytes"):
        lm.load(folder)
    with (folder / "merges.txt").open("w") as file:
        file.truncate(10**10)
    lm.save(*tiny(), folder.parent / "other", dtype=np.float32)
    (folder.parent / "other" / "tokenizer.json").replace(folder / "tokenizer.json")
    with pytest.raises(UserError, match=r"merges\.txt has 10,000,000,000 bytes"):
        lm.load(folder)


def test_code_of_its_own_is_not_run(folder):
    marker = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass T:\n    pass\n")
    edit(folder, "tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    (folder / "config.json").unlink()  # so that no family of transformers comes before it
    with pytest.raises(UserError, match=r"asks for code of its own \(auto_map\), which is not run"):
        read_tokenizer(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "changes", [{"model_max_length": [1]}, {"model_max_length": {}}, {"bos_token": 5}, {"eos_token": ["a"]}]
)
def test_settings_of_the_wrong_type(folder, changes):
    edit(folder, "tokenizer_config.json", **changes)
    with pytest.raises(UserError, match=r"tokenizer in .* cannot be read"):
        lm.load(folder)


def test_an_unknown_class_is_the_plain_one(folder):
    edit(folder, "tokenizer_config.json", tokenizer_class="NoSuchTokenizer")
    assert lm.load(folder).tokenizer("dog plant", add_special_tokens=False)["input_ids"] == [4, 5]


@pytest.mark.parametrize("name", ["../tokenizer.1.0.json", "/etc/tokenizer.1.0.json", 3])
def test_files_outside_of_the_folder_are_not_opened(folder, name):
    edit(folder, "tokenizer_config.json", fast_tokenizer_files=[name])
    with pytest.raises(UserError, match=r"names the file .* expected a file name; it was not opened"):
        lm.load(folder)


def test_ordinary_tokens_beyond_the_model_are_refused_and_added_ones_are_not(tmp_path):
    model, tokenizer = tiny()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(f"<extra{i}>") for i in range(40)]})
    assert len(tokenizer) > model.vocab
    lm.save(model, tokenizer, tmp_path / "added", dtype=np.float32)
    assert len(lm.load(tmp_path / "added").tokenizer) == 46
    found = json.loads((tmp_path / "added" / "tokenizer.json").read_text())
    found["model"]["vocab"]["zebra"] = 31
    found["added_tokens"] = [token for token in found["added_tokens"] if token["id"] < 31]
    (tmp_path / "added" / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"gives token 31 \('zebra'\), but config\.json says vocab_size 31"):
        lm.load(tmp_path / "added")
