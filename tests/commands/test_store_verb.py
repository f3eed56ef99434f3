"""``jhsae store``: files of arrays become a store that trains, whatever interrupts the writing."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jhsae.__main__ import main
from jhsae.data import Store, from_array
from jhsae.data.writer import Writer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)).astype(np.float32)
IDS = RNG.integers(0, 50, size=(12, 10))


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("docs.npy", X.reshape(12, 10, 4))
    np.save("ids.npy", IDS)
    Path("text.txt").write_text("\n".join(f"w{i}" for i in IDS.flat))


def contents(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_file_becomes_a_store(capsys):
    assert main(["store", "docs.npy", "tokens=ids.npy", "text=text.txt", "out=s", "model=embedded", "layer=2"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith("s: 120 rows of 4, 12 documents, ids and text of tokens; next: jhsae train scale.yaml")
    store = Store.open("s")
    index = store.index(0, 120)
    np.testing.assert_array_equal(store.read(0, 120), X[index[:, 0] * 10 + index[:, 1]])
    np.testing.assert_array_equal(index[:, 2], IDS[index[:, 0], index[:, 1]])
    about = store.manifest
    assert (about.model, about.layer, about.documents, about.dataset["name"]) == ("embedded", 2, 12, "docs.npy")
    assert about.tokenizer["vocabulary"][str(IDS[0, 0])] == f"w{IDS[0, 0]}" and len(about.config_hash) == 12


def test_the_same_command_leaves_it_alone_and_another_does_not_overwrite_it(capsys):
    assert main(["store", "x.npy", "out=s"]) == 0
    before = contents("s")
    assert main(["store", "x.npy", "out=s"]) == 0 and contents("s") == before
    for words in (["docs.npy"], ["x.npy", "seed=1"], ["x.npy", "tokens=ids.npy"]):
        assert main(["store", *words, "out=s"]) == 2
        assert "s exists and is never overwritten; write another out=..." in capsys.readouterr().err
    np.save("x.npy", X + 1)  # other content under the same name
    assert main(["store", "x.npy", "out=s"]) == 2 and contents("s") == before


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_killed_write_resumes_to_the_same_bytes(monkeypatch, dtype, capsys):
    monkeypatch.setattr(from_array, "BLOCK_ROWS", 8)
    words = ["store", "docs.npy", "tokens=ids.npy", "shuffle_rows=16", f"dtype={dtype}"]
    small = partial(from_array.write_blocks, shard_rows=16, chunk_rows=8)
    monkeypatch.setattr("jhsae.commands.store.write_blocks", small)
    assert main([*words, "out=whole"]) == 0
    put, done = Writer.put, []

    def killed(writer, group, x, index):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(group.number)
        put(writer, group, x, index)

    monkeypatch.setattr(Writer, "put", killed)
    assert main([*words, "out=cut"]) == 130 and not Path("cut").exists()
    monkeypatch.setattr(Writer, "put", lambda *a: (done.append(a[1].number), put(*a))[1])
    assert main([*words, "out=cut"]) == 0
    assert done[:3] == [0, 1, 2] and done[3] == 2  # the last group that was put may not have been recorded
    whole, cut = contents("whole"), contents("cut")
    for name in ("manifest.json", "SHA256SUMS"):  # which name the folder in the config
        del whole[name], cut[name]
    assert cut == whole
    np.save("ids.npy", IDS + 1)
    monkeypatch.setattr(Writer, "put", killed)
    done.clear()
    main([*words, "out=other"])
    np.save("ids.npy", IDS)
    capsys.readouterr()
    assert main([*words, "out=other"]) == 2 and "that was cut off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["store", "x.npy"], "out is missing, expected str (the store to write)"),
        (["store"], "source is missing"),
        (["store", "none.npy", "out=s"], "there is no file none.npy"),
        (["store", "x.npy", "out=s", "tokens=none.npy"], "tokens is none.npy, which is neither a file nor in x.npy"),
        (["store", "x.npy", "out=s", "dtype=float16"], "dtype is 'float16'"),
        (
            ["store", "x.npy", "--out", "s"],
            "--out is no flag of jhsae store, whose keys are written key=value; write out=s",
        ),
        (["train", "scale.yaml", "--out=runs/x"], "write out=runs/x"),
        (["train", "scale.yaml", "--max-to-keep", "3"], "write max_to_keep=3"),
        (["evaluate", "--run", "out=s"], "write run=..."),
        (["train", "scale.yaml", "-out", "s"], "write out=s"),
        (
            ["train", "scale.yaml", "data.store=x.npy"],
            "x.npy is no activation store but a .npy file; write jhsae store x.npy out=FOLDER",
        ),
        (
            ["train", "scale.yaml", "data.store=arrays"],
            "is no activation store but a folder of arrays (a.npy); write jhsae store arrays",
        ),
        (["evaluate", "run=r", "store=x.npy"], "no trained SAE in r"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, sentence, capsys):
    Path("arrays").mkdir()
    np.save("arrays/a.npy", X)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not Path("s").exists() and not Path("s.partial").exists()


def test_a_source_may_have_any_name_and_a_config_may_name_it(capsys):
    for number, name in enumerate(("a=b.npy", "[x].npy", "größe: 1.npy")):
        np.save(name, X)
        assert main(["store", name, f"out=s{number}"]) == 0
    Path("mine.yaml").write_text("source: x.npy\nout: from_yaml\n")
    assert main(["store", "mine.yaml"]) == 0 and Store.open("from_yaml").rows == 120
