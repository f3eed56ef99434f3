"""SHA256SUMS: what it says, what it refuses, and single bytes changed anywhere in what was saved."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sealed import sealed
from test_saved_sae import FLAT, WHITEN, built

from jhsae.data import Store, write_array
from jhsae.errors import UserError
from jhsae.files.checksums import NAME, Sums, new_folder, parse, verify
from jhsae.files.folders import whole_folder
from jhsae.interop import plain, saelens
from jhsae.sae.io import load_sae, save_sae
from jhsae.teacher import Teacher
from jhsae.teacher.artifact import SHAPES
from jhsae.teacher.select import Concept

FLIPS = 40  # of every artifact
ABOUT = {"name": "a", "reads": {"model": "array", "layer": 0}}
A, B = "a" * 64, "b" * 64


def teacher() -> Teacher:
    sizes = {"parents": 2, "children": 2, "sub": 2, "embed": 5}
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=[sizes[a] for a in axes]).astype(np.float32) for name, axes in SHAPES.items()}
    child = Concept("c", "c", (1,))
    concepts = tuple(Concept(f"p{i}", f"p{i}", (1, 2), (child, child)) for i in range(2))
    return Teacher(**arrays | {"counts": np.full(2, 2, np.int32)}, concepts=concepts, provenance={}, validation={})


def arguments():
    sae, normalizer = built(FLAT, WHITEN)
    return sae, FLAT, WHITEN, normalizer, ABOUT


def save_teacher(folder: Path) -> None:
    teacher().save(folder)


def save_store(folder: Path) -> None:
    write_array(folder, np.random.default_rng(0).normal(size=(40, 3)), dtype="int8", shard_rows=16, chunk_rows=8)


def save_export(folder: Path) -> None:
    sae, normalizer = built(FLAT, {"_target_": "jhsae.data.Identity"})
    saelens.write(folder, sae, normalizer, ABOUT | {"sae": FLAT})


def save_shared(folder: Path) -> None:
    sae, _, _, normalizer, _ = arguments()
    plain.write(folder, sae, normalizer, ABOUT | {"sae": FLAT, "normalize": WHITEN})


KINDS = {
    "sae": (lambda folder: save_sae(folder, *arguments()), load_sae),
    "teacher": (save_teacher, Teacher.load),
    "store": (save_store, Store.open),
    "saelens": (save_export, saelens.read),
    "folder": (save_shared, load_sae),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_changed_byte_is_noticed(tmp_path, caplog, kind):
    """A byte of a random file, at a random place, becomes another: refused, or, in a README, said."""
    save, load = KINDS[kind]
    save(tmp_path / "a")
    load(tmp_path / "a")
    files = sorted(file for file in (tmp_path / "a").rglob("*") if file.is_file())
    chance = random.Random(kind)
    for _ in range(FLIPS):
        file = chance.choice(files)
        whole = file.read_bytes()
        place = chance.randrange(len(whole))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        caplog.clear()
        what = f"byte {place} of {file.relative_to(tmp_path)}"
        try:
            load(tmp_path / "a")
        except UserError as error:
            assert "\n" not in str(error), what
        else:
            assert "README.md is not the file that was written" in caplog.text, what
        file.write_bytes(whole)
    load(tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_listed_as_sha256sum_reads_it(tmp_path, kind):
    KINDS[kind][0](tmp_path / "a")
    files = {f.relative_to(tmp_path / "a").as_posix() for f in (tmp_path / "a").rglob("*") if f.is_file()}
    assert parse((tmp_path / "a" / NAME).read_bytes(), "x").keys() == files - {NAME}
    if program := shutil.which("sha256sum"):
        done = subprocess.run([program, "-c", "--strict", "--quiet", NAME], cwd=tmp_path / "a", capture_output=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["sae", "teacher", "store"])
def test_without_its_checksums_a_folder_of_this_format_is_refused(tmp_path, kind):
    save, load = KINDS[kind]
    save(tmp_path / "a")
    (tmp_path / "a" / NAME).unlink()
    with pytest.raises(UserError, match="has no SHA256SUMS, which belongs to it"):
        load(tmp_path / "a")


def test_an_sae_of_the_format_before_has_none_and_says_so(tmp_path, caplog):
    folder = tmp_path / "a"
    save_sae(folder, *arguments())
    (folder / "sae.json").write_text(json.dumps(json.loads((folder / "sae.json").read_text()) | {"format": 2}))
    (folder / NAME).unlink()
    np.testing.assert_array_equal(load_sae(folder)[0].W_dec, arguments()[0].W_dec)
    assert "carries no checksums" in caplog.text
    sealed(folder)
    caplog.clear()
    load_sae(folder)
    assert not caplog.messages
    with (folder / "sae.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="is damaged or was changed"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{A}  a\n{B}  a\n", "line 2: a stands there twice"),
        (f"{A}  ../a\n", "names the file '../a', expected a path inside"),
        (f"{A}  /etc/passwd\n", "names the file '/etc/passwd'"),
        (f"{A}  a", "was cut short"),
        (f"{A[:-1]}  a\n", "line 1: got .* expected a sha256 and a file"),
        (f"{A.upper()}  a\n", "expected a sha256"),
        (f"{A} a\n", "expected a sha256"),
        ("\n", "expected a sha256"),
        ("\xff", "is no text"),
    ],
)
def test_lines_that_are_none_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(text.encode("latin1"), "SHA256SUMS")


def test_a_file_that_is_not_listed_or_missing_is_refused(tmp_path):
    with new_folder(tmp_path / "a") as new:
        new.write("one", "1")
        new.write("sub/two", b"2")
        (Path(new.path) / "three").write_text("3")  # as a library writes it that takes a path
    sums = Sums.of(tmp_path / "a")
    assert sums.read("sub/two") == b"2" and sums.read("three") == b"3"
    verify(tmp_path / "a")
    (tmp_path / "a" / "four").write_text("4")
    with pytest.raises(UserError, match="does not list four"):
        sums.read("four")
    (tmp_path / "a" / "one").unlink()
    with pytest.raises(UserError, match=r"there is no file .*one"):
        verify(tmp_path / "a")


def test_a_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "deep" / "a") as new:
        new.write("one", "1")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "left").write_text("of a killed process")
    with whole_folder(tmp_path / "a") as partial:
        (Path(partial) / "one").write_text("1")
    assert [f.name for f in tmp_path.iterdir()] == ["a"] and [f.name for f in (tmp_path / "a").iterdir()] == ["one"]
    with pytest.raises(UserError, match=r"a exists already and is never overwritten"), whole_folder(tmp_path / "a"):
        pass


@pytest.mark.parametrize("in_the_way", ["a file", "a link to nothing"])
def test_what_cannot_be_made_is_a_sentence(tmp_path, in_the_way):
    if in_the_way == "a file":
        (tmp_path / "a").write_text("mine")
        with pytest.raises(UserError, match=r"b cannot be written \(File exists: .*/a\)"):
            teacher().save(tmp_path / "a" / "b")
        assert (tmp_path / "a").read_text() == "mine"
    else:
        (tmp_path / "b").symlink_to(tmp_path / "nothing" / "here")
        with pytest.raises(UserError, match=r"b is a link to .*, which does not exist"):
            teacher().save(tmp_path / "b")


def test_notes_of_a_hostile_list_are_few_and_steer_no_terminal(tmp_path, caplog):
    """A list of files that are not there, some with names that a terminal would obey."""
    save_sae(tmp_path / "a", *arguments())
    with (tmp_path / "a" / NAME).open("a") as file:
        file.writelines(f"{A}  \x1b[31m{i}\n" for i in range(1000))
    load_sae(tmp_path / "a")
    said = "\n".join(caplog.messages)
    assert "\x1b" not in said and len(said.splitlines()) < 20 and "has more such files" in said


def test_a_list_names_the_folder_that_its_names_must_stay_in():
    with pytest.raises(UserError, match="expected a path inside of run/sae; it was not opened"):
        parse(f"{A}  /etc/passwd\n".encode(), "run/sae/SHA256SUMS")
