"""Changes of files and of configs by a seeded generator; the same seed gives the same change.

A change is told in words, so that a case that fails can be understood without running it again.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator

DEEP: Any = []
for _ in range(90):
    DEEP = [DEEP]
WILD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**6, 10**12, -(10**12), 10**40, 2**31, 2**63, 0.5, -0.0, 1e-320, 1e30, 1e308,
    float("nan"), float("inf"), float("-inf"), "", "a", "3", "NaN", "null", "a" * 5000, "../../etc/passwd", "/dev/zero",
    "\ud800", "\u202e\n\r\t\0", "ä😀", "${out}", "float32", "int8", [], {}, [1], [None], ["a"], {"a": 1}, [[1, 2], [3]],
    DEEP, {"_target_": "os.system"}, {"_target_": "jhsae.sae.FlatSAE"}, [1] * 1000,
)  # fmt: skip


def pick(rng: Rng, values: Any) -> Any:
    """One of `values`, whatever they are."""
    return values[int(rng.integers(len(values)))]


# trees of JSON and YAML


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside of `tree`."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in children for place in [(*path, key), *nodes(value, (*path, key))]]


def _parent(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def mutated_tree(tree: Any, rng: Rng, wild: tuple[Any, ...] = WILD) -> tuple[Any, str]:
    """A copy of `tree` with one change, and the change in words."""
    tree = copy.deepcopy(tree)
    places = nodes(tree)
    if not places:
        return pick(rng, wild), "the whole replaced"
    path, how = pick(rng, places), int(rng.integers(10))
    holder, key, named = _parent(tree, path), path[-1], ".".join(map(str, path))[:60]
    if how < 5:
        holder[key] = value = pick(rng, wild)
        return tree, f"{named} = {str(value)[:30]!r}"
    if how == 5:
        del holder[key]
        return tree, f"{named} removed"
    if how == 6:
        other = pick(rng, places)
        value = copy.deepcopy(_parent(tree, other)[other[-1]])
        holder[key] = value
        return tree, f"{named} replaced by {'.'.join(map(str, other))[:60]}"
    if how == 7:
        holder[key] = [holder[key]] if rng.integers(2) else {"a": holder[key]}
        return tree, f"{named} wrapped"
    if how == 8 and isinstance(holder, dict):
        holder[pick(rng, ("x", str(key).upper(), str(key)[1:], f"{key} ", "ä", "_target_", "a.b", "${a}"))] = (
            holder.pop(key)
        )
        return tree, f"{named} renamed"
    if isinstance(holder, dict):
        holder[pick(rng, ("unknown", "_target_", "_args_", "_partial_", "__class__", "base"))] = pick(rng, wild)
        return tree, f"a key beside {named}"
    holder.insert(key, copy.deepcopy(holder[key]))
    return tree, f"{named} twice"


NUMBERS = (
    0,
    1,
    2,
    -1,
    -2,
    7,
    10**9,
    10**15,
    -(10**9),
    0.0,
    -0.0,
    0.5,
    1.5,
    -1e-3,
    1e-12,
    1e12,
    1e308,
    float("nan"),
    float("inf"),
)


def mutated_number(tree: Any, rng: Rng) -> tuple[Any, str]:
    """A copy of `tree` with another number, of the same kind or of the other, in place of one."""
    tree = copy.deepcopy(tree)
    places = [path for path in nodes(tree) if type(_parent(tree, path)[path[-1]]) in (int, float)]
    if not places:
        return mutated_tree(tree, rng)
    path = pick(rng, places)
    _parent(tree, path)[path[-1]] = value = pick(rng, NUMBERS)
    return tree, f"{'.'.join(map(str, path))[:60]} = {value}"


def json_text(value: Any, rng: Rng) -> str:
    """JSON as Python writes it, NaN and lone surrogates included; now and then with a key that stands there twice."""
    text = json.dumps(value)
    if isinstance(value, dict) and value and rng.integers(20) == 0:
        text = text[:-1] + f", {json.dumps(pick(rng, list(value)))}: 1}}"
    return text


# files


def mutated_bytes(data: bytes, rng: Rng) -> tuple[bytes, str]:
    """Bytes changed without looking at what they mean."""
    how, size = int(rng.integers(10)), len(data)
    at = int(rng.integers(size)) if size else 0
    span = int(rng.integers(1, 64))
    if how < 3 and size:
        return data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :], f"byte {at} changed"
    if how == 3:
        return data[:at], f"cut after {at} bytes"
    if how == 4:
        return b"", "empty"
    if how == 5:
        return data + data, "twice"
    if how == 6:
        return data[:at] + b"\0" * span + data[at + span :], f"zeros at {at}"
    if how == 7:
        return data[:at] + rng.bytes(span) + data[at:], f"{span} bytes more at {at}"
    if how == 8:
        return data[:at] + data[at + span :], f"{span} bytes fewer at {at}"
    return rng.bytes(min(size, 10_000)), "random bytes"


def mutated_json(data: bytes, rng: Rng) -> tuple[bytes, str]:
    """A JSON file with another value in it."""
    tree, words = mutated_tree(json.loads(data), rng)
    return json_text(tree, rng).encode("utf-8", "surrogatepass"), words


def mutated_lines(data: bytes, rng: Rng) -> tuple[bytes, str]:
    """A JSONL file with another value in one row, or with rows that are missing, repeated or cut."""
    lines = data.splitlines(keepends=True)
    at, how = int(rng.integers(len(lines))), int(rng.integers(8))
    if how == 0:
        return b"".join(lines[:at] + lines[at + 1 :]), f"row {at} missing"
    if how == 1:
        return b"".join(lines)[: -int(rng.integers(1, 20))], "the end cut"
    if how == 2:
        return b"".join(
            [*lines[:at], b"\n", pick(rng, (b"[]\n", b"3\n", b"{\n", b"\xff\n", b"\0\n")), *lines[at:]]
        ), "a row more"
    changed, words = mutated_json(lines[at], rng)
    return b"".join([*lines[:at], changed + b"\n", *lines[at + 1 :]]), f"row {at}: {words}"


def mutated_safetensors(data: bytes, rng: Rng) -> tuple[bytes, str]:
    """A safetensors file whose header says something else, with the same numbers behind it."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    how = int(rng.integers(8))
    if how == 0:
        wrong = pick(rng, (0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        return wrong.to_bytes(8, "little") + data[8:], f"header of {wrong} bytes"
    if how < 3:
        name = pick(rng, [key for key in header if key != "__metadata__"])
        dtype = pick(rng, ("I32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X", "I64"))
        header[name]["dtype"], words = dtype, f"{name} as {dtype}"
    elif how == 3:
        name = pick(rng, [key for key in header if key != "__metadata__"])
        header[name]["shape"] = pick(
            rng, ([], [0], [-1], [2**40, 2**40], [1] * 70, header[name]["shape"][::-1], [10**9])
        )
        words = f"{name} of shape {str(header[name]['shape'])[:30]}"
    else:
        header, words = mutated_tree(header, rng)
    text = json_text(header, rng).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + rest, words


def numbers(array: np.ndarray, rng: Rng) -> tuple[np.ndarray, str]:
    """An array of another shape, type or value."""
    how = int(rng.integers(8))
    if how == 0 and array.size:
        spoilt = np.array(array, np.float32 if array.dtype.kind in "fiub" else array.dtype)
        if spoilt.dtype.kind == "f":
            spoilt.reshape(-1)[int(rng.integers(spoilt.size))] = pick(rng, (np.nan, np.inf, 1e38, -1e38))
        return spoilt, "a value spoilt"
    if how == 1:
        return array[..., None], "an axis more"
    if how == 2:
        return array.reshape(-1), "flat"
    if how == 3:
        return array[:0] if array.ndim else np.zeros((0,), array.dtype), "no row"
    if how == 4:
        return np.concatenate([array, array]) if array.ndim else array[None], "twice"
    if how == 5:
        return array.T, "transposed"
    kinds = ("float64", "float16", "int8", "int64", "bool", "complex64", "U1", "S1", "V3", "datetime64[D]")
    if array.dtype.kind not in "fiub":
        return np.array(3), "a number"
    kind = pick(rng, kinds)
    return (np.zeros(array.shape, kind) if kind in kinds[6:] else array.astype(kind)), f"as {kind}"


def mutated_npz(path: Path, rng: Rng) -> str:
    """An npz file with an array changed, missing or more."""
    with np.load(path) as file:
        arrays = dict(file)
    name, how = pick(rng, sorted(arrays)), int(rng.integers(6))
    if how == 0:
        del arrays[name]
        words = f"{name} missing"
    elif how == 1:
        arrays[pick(rng, ("more", "../up", f"{name}x"))], words = np.zeros(3), "an array more"
    elif how == 2:
        arrays[name], words = np.array([{"a": 1}], object), f"{name} pickled"
    else:
        arrays[name], what = numbers(arrays[name], rng)
        words = f"{name} {what}"
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return words


KINDS: tuple[tuple[str, Callable[[Path, Path], object]], ...] = (
    ("missing", lambda path, aside: None),
    ("a folder", lambda path, aside: path.mkdir()),
    ("a FIFO", lambda path, aside: os.mkfifo(path)),
    ("a link to nothing", lambda path, aside: path.symlink_to(path.parent / "none")),
    ("a link to itself", lambda path, aside: path.symlink_to(path)),
    ("/dev/zero", lambda path, aside: path.symlink_to("/dev/zero")),
    ("a link to what it was", lambda path, aside: path.symlink_to(aside)),
)


def mutated_kind(path: Path, rng: Rng, aside: Path) -> str:
    """Something else than a file under its name; the file itself goes to `aside`."""
    words, make = pick(rng, KINDS)
    shutil.move(path, aside)
    make(path, aside)
    return words


def sealed_again(path: Path) -> None:
    """Gives the changed file `path` its new checksum in the lists above it, as one would who changed it on purpose."""
    for folder in path.parents:
        sums, name = folder / "SHA256SUMS", path.relative_to(folder).as_posix()
        if sums.is_file() and path.is_file() and not path.is_symlink():
            rows = [row.split("  ", 1) for row in sums.read_text().splitlines()]
            known = [
                [sha256(path.read_bytes()).hexdigest(), other] if other == name else [old, other] for old, other in rows
            ]
            sums.write_text("".join(f"{digest}  {other}\n" for digest, other in known))


WRITERS = {
    ".json": mutated_json,
    ".jsonl": mutated_lines,
    ".safetensors": mutated_safetensors,
}


def mutated_file(path: Path, rng: Rng, aside: Path) -> str:
    """Changes the file `path`, and says how: its kind, its bytes, or what they mean."""
    how = int(rng.integers(10))
    if how < 2:
        return mutated_kind(path, rng, aside)
    if how < 6 or (path.suffix not in WRITERS and path.suffix != ".npz"):
        changed, words = mutated_bytes(path.read_bytes(), rng)
    elif path.suffix == ".npz":
        return mutated_npz(path, rng)
    else:
        changed, words = WRITERS[path.suffix](path.read_bytes(), rng)
    path.write_bytes(changed)
    return words
