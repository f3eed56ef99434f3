"""Files that are small to store and would be large, deep or endless to read: every reader refuses them at once."""

import functools
import gzip
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import KINDS, quick
from basics import EMBED, FEATURES
from cases import Cases, inside
from mutations import sealed_again

GIGABYTES = 10 * 2**30


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Iterator[Cases]:
    with quick():
        yield Cases(tmp_path_factory.mktemp("made"))


def refused(
    cases: Cases, kind: str, file: str, spoil: Callable[[Path], object], place: Path, sealed: bool = False
) -> str:
    """The sentence with which the artifact of `kind` is refused once `spoil` has changed `file`.

    Where it is `sealed`, its checksums say the same as the changed file, so that what it says is looked at.
    """
    shutil.copytree(cases.artifact(kind), place / "case")
    with inside(place / "case"):
        spoil(Path(file))
        if sealed:
            sealed_again(Path(file))
        outcome = cases.judged(kind, place)
    assert outcome.word == "sentence", outcome
    return outcome.detail


def sparse(path: Path) -> None:
    """Every tensor a hundred times longer along its first axis, ten gigabytes of holes behind the header."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    names = [name for name in header if name != "__metadata__"]
    each = GIGABYTES // len(names) // 4096 * 4096
    for i, name in enumerate(names):
        header[name] = {
            "dtype": "F32",
            "shape": [each // 4 // EMBED, EMBED],
            "data_offsets": [i * each, (i + 1) * each],
        }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + each * len(names))


@functools.cache
def million() -> bytes:
    entry = '"t{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    text = ("{" + ",".join(entry.format(i) for i in range(10**6)) + "}").encode()
    return len(text).to_bytes(8, "little") + text


def many_tensors(path: Path) -> None:
    """A header of a million tensors without a byte."""
    path.write_bytes(million())


def long_header(path: Path) -> None:
    """A header that says it has two gigabytes, in a file that has them."""
    with path.open("wb") as file:
        file.write((2**31).to_bytes(8, "little") + b'{"a":')
        file.truncate(2**31 + 100)


SAFETENSORS = {
    "saved SAE": "run/sae/sae.safetensors",
    "SAELens": "sae/sae_weights.safetensors",
    "dictionary_learning": "sae/ae.safetensors",
    "sparsify": "sae/layers.3/sae.safetensors",
    "OpenAI": "sae.safetensors",
    "torch module": "sae/sae_weights.safetensors",
    "teacher": "teacher/teacher.safetensors",
    "language model": "lm/model-00001-of-00002.safetensors",
}


@pytest.mark.parametrize("kind", SAFETENSORS)
@pytest.mark.parametrize("spoil", [sparse, many_tensors, long_header])
def test_safetensors(cases: Cases, kind: str, spoil: Callable[[Path], None], tmp_path: Path):
    refused(cases, kind, SAFETENSORS[kind], spoil, tmp_path)


def deep(path: Path) -> None:
    path.write_text('{"a":' * 10**6)


def deep_inside(path: Path) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree)[:-1] + ', "more": ' + "[" * 500 + "]" * 500 + "}")


def wide(path: Path) -> None:
    path.write_text('{"a": [' + "[]," * 10**7 + "[]]}")


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(GIGABYTES)


def utf16(path: Path) -> None:
    path.write_bytes(path.read_text().encode("utf-16"))


def with_nan(path: Path) -> None:
    path.write_text(path.read_text().rstrip()[:-1] + ', "nan": NaN}')


JSON = {
    "saved SAE": "run/sae/sae.json",
    "reported run": "run/run.json",
    "resumed run": "run/run.json",
    "store": "store/manifest.json",
    "teacher": "teacher/teacher.json",
    "SAELens": "sae/cfg.json",
    "dictionary_learning": "sae/config.json",
    "sparsify": "sae/layers.3/cfg.json",
    "torch module": "sae/cfg.json",
    "language model": "lm/config.json",
}


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("spoil", [deep, deep_inside, wide, endless, large, utf16, with_nan])
def test_json(cases: Cases, kind: str, spoil: Callable[[Path], None], tmp_path: Path):
    refused(cases, kind, JSON[kind], spoil, tmp_path, sealed=spoil is not large)  # nobody hashes ten gigabytes


@pytest.mark.parametrize("spoil", [deep, wide, endless, large])
@pytest.mark.parametrize("file", ["lm/model.safetensors.index.json", "lm/tokenizer.json", "lm/tokenizer_config.json"])
def test_the_other_json_of_a_language_model(cases: Cases, file: str, spoil: Callable[[Path], None], tmp_path: Path):
    refused(cases, "language model", file, spoil, tmp_path)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..", "a/../../b", 3, None])
def test_an_index_that_leaves_its_folder(cases: Cases, name: Any, tmp_path: Path):
    def leave(path: Path) -> None:
        index = json.loads(path.read_text())
        index["weight_map"] = dict.fromkeys(index["weight_map"], name)
        path.write_text(json.dumps(index))

    refused(cases, "language model", "lm/model.safetensors.index.json", leave, tmp_path)


@pytest.mark.parametrize("spoil", [wide, endless, large])
@pytest.mark.parametrize("file", ["results.jsonl", "metrics.jsonl", "timing.jsonl", "contexts.json"])
def test_the_logs_of_a_run(cases: Cases, file: str, spoil: Callable[[Path], None], tmp_path: Path):
    def terminated(path: Path) -> None:
        spoil(path)
        if spoil is wide and path.suffix == ".jsonl":
            path.write_bytes(path.read_bytes() + b"\n")

    refused(cases, "reported run", f"run/{file}", terminated, tmp_path)


ALIASES = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [ALIASES, "a: " + "[" * 10**5, "a: 1" + ":1" * 400_000, "- " * 10**5, "a: &a [*a]"])
@pytest.mark.parametrize("kind", ["reported run", "resumed run"])
def test_the_config_of_a_run(cases: Cases, kind: str, text: str, tmp_path: Path):
    refused(cases, kind, "run/config.yaml", lambda path: path.write_text(text), tmp_path)


def expanding(path: Path) -> None:
    """An npz of 300 megabytes in a third of one."""
    descr = repr({"descr": "<f4", "fortran_order": False, "shape": (75 * 2**20,)}).encode() + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(descr)) + descr + bytes(300 * 2**20)
        archive.writestr("x.npy", content, compresslevel=1)


def square(path: Path) -> None:
    """Small arrays, of which one says that it is large."""
    with np.load(path) as file:
        arrays = dict(file)
    name = "W_enc" if "W_enc" in arrays else "x"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        descr = repr({"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)}).encode() + b"\n"
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(descr)) + descr + bytes(100))


def many_members(path: Path) -> None:
    """A zip archive that lists a million members."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")
    data = path.read_bytes()
    at = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    record = data[at:end] * 10**5
    path.write_bytes(data[:at] + record + data[end : end + 8] + struct.pack("<HHLLH", 9, 9, len(record), at, 0))


@pytest.mark.parametrize("spoil", [expanding, square, many_members, endless, large])
@pytest.mark.parametrize(
    ("kind", "file"), [("Gemma Scope", "layer_3/width/params.npz"), ("golden numbers", "golden.npz")]
)
def test_npz(cases: Cases, kind: str, file: str, spoil: Callable[[Path], None], tmp_path: Path):
    refused(cases, kind, file, spoil, tmp_path)


@pytest.mark.parametrize("spoil", [expanding, many_members, endless, large])
def test_pickles(cases: Cases, spoil: Callable[[Path], None], tmp_path: Path):
    refused(cases, "pickle", "sae/ae.pt", spoil, tmp_path)


@pytest.mark.parametrize("content", [b"a" * (2**27), b"00000001 03 n 01 a 0 000 | b\n" * 1_100_000])
def test_wordnet(cases: Cases, content: bytes, tmp_path: Path):
    def pack(path: Path) -> None:
        path.unlink()
        with gzip.open("data.noun.gz", "wb", 1) as file:
            file.write(content)

    refused(cases, "WordNet", "data.noun", pack, tmp_path)


NUMBERS = (10**12, 2**70, -1, 0, True, "12", [12], None, 1.5, {"a": 1}, FEATURES + 1)
SIZES = {
    "SAELens": ("d_sae", "d_in"),
    "sparsify": ("d_in", "k", "num_latents"),
    "dictionary_learning": ("k", "dict_size"),
}


@pytest.mark.parametrize("number", NUMBERS, ids=str)
@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in SIZES.items() for key in keys])
def test_numbers_of_foreign_configs(cases: Cases, kind: str, key: str, number: Any, tmp_path: Path):
    def put(path: Path) -> None:
        config = json.loads(path.read_text())
        place = config["trainer"] if kind == "dictionary_learning" else config
        place[key] = number
        path.write_text(json.dumps(config))

    if (kind, key, number) == ("sparsify", "num_latents", 0):
        pytest.skip("0 is expansion_factor * d_in")
    assert key in refused(cases, kind, JSON[kind], put, tmp_path, sealed=True) or isinstance(number, int)


@pytest.mark.parametrize("file", ["state/manifest.ocdbt", "state/_METADATA", "about/metadata"])
def test_a_checkpoint_with_a_fifo_gives_way_to_the_one_before(cases: Cases, file: str, tmp_path: Path):
    shutil.copytree(cases.artifact("checkpoint"), tmp_path / "case")
    with inside(tmp_path / "case"):
        Path("checkpoints/2", file).unlink()
        os.mkfifo(Path("checkpoints/2", file))
        assert cases.judged("checkpoint", tmp_path).word == "right"
        assert Path("checkpoints/2.damaged").is_dir()


@pytest.mark.parametrize("spoil", [endless, large, os.mkfifo])
def test_what_orbax_reads_of_a_checkpoint_at_once(cases: Cases, spoil: Callable[[Path], None], tmp_path: Path):
    def instead(path: Path) -> None:
        if spoil is os.mkfifo:
            path.unlink()
        spoil(path)

    refused(cases, "checkpoint", "checkpoints/2/_CHECKPOINT_METADATA", instead, tmp_path)


@pytest.mark.parametrize(("kind", "folder"), [("SAELens", "sae"), ("saved SAE", "run/sae")])
def test_a_large_file_that_nothing_reads_is_not_hashed(cases: Cases, kind: str, folder: str, tmp_path: Path):
    shutil.copytree(cases.artifact(kind), tmp_path / "case")
    with inside(tmp_path / "case"):
        with Path(folder, "README.md").open("ab") as file:
            file.truncate(GIGABYTES)
        sums = Path(folder, "SHA256SUMS")
        rows = [row for row in sums.read_text().splitlines() if not row.endswith("  README.md")]
        sums.write_text("".join(f"{row}\n" for row in [*rows, f"{'0' * 64}  README.md"]))
        assert cases.judged(kind, tmp_path).word == "right"


def test_every_kind_with_a_file_of_tensors_or_json_is_tried():
    named = {*SAFETENSORS, *JSON, "Gemma Scope", "golden numbers", "pickle", "WordNet", "page", "checkpoint"}
    assert named | {"evaluated run"} == set(KINDS)
