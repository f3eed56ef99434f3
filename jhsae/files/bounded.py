"""Bounded reading of untrusted files: JSON, YAML, gzip and the headers of safetensors.

Every reader first checks the kind and the size of a file, and only then reads. Sizes come from
headers and are compared with a limit, or with the expected size, before any data is read. No code named by a file is
run. Every error is a `UserError` with the file, what was got and what to do.
"""

import gzip
import json
import math
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import yaml
from etils import epath

from jhsae.errors import UserError

MIB = 2**20
JSON_BYTES = 64 * MIB
JSON_VALUES = 3_000_000  # the tokenizer of Gemma 3 has two million
LINES_BYTES, LINES_VALUES = 4 * JSON_BYTES, 6_000_000  # some 300,000 rows of a log
LARGEST = 10**38  # of integers: tokenizers write 10^30 for "no limit"
YAML_BYTES = MIB
YAML_NODES = 20_000  # nodes after aliases are expanded
YAML_NUMBER = 1000  # characters: PyYAML needs a minute for a number of a megabyte in base 60
_ENDLESS_NUMBER = re.compile(r"[\d:._+-]{10000}")  # which PyYAML may read for a minute before it is an event
DEPTH = 64  # nested lists and mappings

File: TypeAlias = Path | epath.Path


def regular_file(path: str | File) -> File:
    """`path` as it is, if it is a regular file (or an object in a bucket).

    Raises:
        UserError: It does not exist, or is a folder, a FIFO, a device or a socket, which may block forever.
    """
    path = path if isinstance(path, Path | epath.Path) else Path(path)
    if "://" in str(path):
        if not path.exists():
            raise UserError(f"there is no file {path}; write the path of a file that exists")
        return path
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no file {path}; write the path of a file that exists") from error
    except (OSError, ValueError) as error:  # no permission, a loop of links, a NUL in the name
        raise UserError(f"{str(path)!r} cannot be opened ({reason(error)})") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, a device or a socket"
        raise UserError(f"{path} is {kind}, expected a file")
    return path


def size_of(path: str | File) -> int:
    """Bytes of a regular file."""
    path = regular_file(path)
    return path.stat().length if "://" in str(path) else os.stat(path).st_size  # type: ignore[union-attr]


def read_bytes(path: str | File, limit: int) -> bytes:
    """The whole of a regular file of at most `limit` bytes.

    Raises:
        UserError: no regular file, one that is larger, or one that cannot be read.
    """
    path = regular_file(path)
    if (size := size_of(path)) > limit:
        raise UserError(f"{path} has {size:,} bytes, expected at most {limit:,}; it is not what its name says")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)})") from error
    if len(data) > limit:  # it grew, or reports no size, as in /proc
        raise UserError(f"{path} has more than {limit:,} bytes; it is not what its name says")
    return data


def read_start(path: str | File, size: int) -> bytes:
    """The first `size` bytes of a regular file, or all of it where it is shorter."""
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)})") from error


def read_gzip(path: str | File, limit: int) -> bytes:
    """The decompressed content of a gzip file: at most `limit` bytes.

    Raises:
        UserError: no regular file, one that expands further, or one that is damaged or truncated.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file, gzip.open(file) as expanded:
            data = expanded.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as gzip ({reason(error)}); copy or download it again") from error
    if len(data) > limit:
        raise UserError(f"{path} expands to more than {limit:,} bytes; it is not what its name says")
    return data


def parse_json(text: str | bytes, where: str | File, depth: int = DEPTH, nan: bool = False) -> Any:
    """The value of a JSON text, which must be UTF-8.

    Refused are NaN and infinity (which become None where `nan` allows them, for logs of older versions), repeated keys,
    halves of surrogate pairs, integers beyond `LARGEST`, too many values, and nesting deeper than `depth`.

    Raises:
        UserError: naming `where`.
    """
    _check_values(text, where)
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(
            text,
            parse_constant=(lambda _: None) if nan else _refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read as JSON ({reason(error)}); copy or make it again") from error
    _check_tree(value, where, depth, strings=_MAYBE_SURROGATE.search(text) is not None)
    return value


def read_json(path: str | File, limit: int = JSON_BYTES, depth: int = DEPTH) -> Any:
    """The value in a JSON file, read as `parse_json` does."""
    return parse_json(read_bytes(path, limit), path, depth)


def read_object(path: str | File, limit: int = JSON_BYTES, depth: int = DEPTH) -> dict[str, Any]:
    """The object in a JSON file. `UserError` for any other value."""
    return as_object(read_json(path, limit, depth), path)


def as_object(value: Any, where: str | File) -> dict[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{where} holds a {type(value).__name__}, expected a JSON object: {{...}}")
    return value


def read_lines(path: str | File, limit: int = LINES_BYTES, nan: bool = True) -> list[dict[str, Any]]:
    """The objects of a JSONL file; empty lines and a truncated last line are skipped.

    NaN, as in logs of older versions, becomes None unless `nan` is False.
    """
    text = read_bytes(path, limit)
    _check_values(text, path, LINES_VALUES)
    whole = text[: text.rfind(b"\n") + 1].split(b"\n")
    places = [(line, f"{path}, line {i}") for i, line in enumerate(whole, 1) if line.strip()]
    return [as_object(parse_json(line, place, nan=nan), place) for line, place in places]


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text. NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def read_yaml(path: str | File) -> str:
    """The text of a YAML file of at most `YAML_BYTES`, whose aliases expand to at most `YAML_NODES` nodes.

    It is parsed only into events, so that any loader may read it afterwards.
    """
    data = read_bytes(path, YAML_BYTES)
    try:
        text = data.decode("utf-8")
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {reason(error)}") from error
    check_yaml(text, path)
    return text


def check_yaml(text: str, where: str | File) -> None:
    """Raises `UserError` for an unsafe YAML text, as `read_yaml` does for a file."""
    if len(text) > YAML_BYTES:
        raise UserError(f"{where} has {len(text):,} characters, expected at most {YAML_BYTES:,}")
    if _ENDLESS_NUMBER.search(text):
        raise UserError(f"{where} holds a number of more than 10,000 digits, expected at most {YAML_NUMBER:,}")
    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader), where)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        words = reason(error).replace('"<unicode string>", ', "")
        raise UserError(f"{where}: not valid YAML: {words}") from error


def check_size(value: Any, where: str | File) -> None:
    """Raises `UserError` for lists and mappings nested deeper than `DEPTH`, or of more than `YAML_NODES` values."""
    level, depth, total = [value], 0, 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth, total = depth + 1, total + sum(map(len, level))
        if depth > DEPTH or total > YAML_NODES:
            what = f"nested more than {DEPTH} deep" if depth > DEPTH else f"more than {YAML_NODES:,} values"
            raise UserError(f"{where} is {what}; write it shorter")
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]


def load_yaml(path: str | File) -> Any:
    """The value in a YAML file: mappings, lists, strings, numbers, nothing else."""
    text = read_yaml(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: not valid YAML: {reason(error)}") from error


def inside(folder: str | Path, name: Any, said_by: str | File) -> Path:
    """``folder/name`` for a name read from a file: a relative path inside the folder.

    Raises:
        UserError: An absolute path, ``..``, or not a path.
    """
    words = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not words or "\0" in name or "\\" in name or ".." in words or PurePosixPath(name).is_absolute():
        raise UserError(f"{said_by} names the file {name!r}, expected a path inside of {folder}; it was not opened")
    return Path(folder, *words)


def reason(error: BaseException) -> str:
    """The text of an error in one line of at most 200 characters."""
    if isinstance(error, RecursionError):
        return f"nested more than {DEPTH} deep"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _check_values(text: str | bytes, where: str | File, most: int = JSON_VALUES) -> None:
    found = (
        sum(text.count(m) for m in "[{,") if isinstance(text, str) else sum(text.count(m) for m in (b"[", b"{", b","))
    )
    if found > most:
        raise UserError(f"{where} has about {found:,} values, expected at most {most:,}; it was not read")


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond the range of a float")
    return value


def _integer(text: str) -> int:
    if len(text) > 45 or abs(value := int(text)) > LARGEST:
        raise ValueError(f"{text[:20]}... is beyond any number that is meant")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {sys.intern(key): value for key, value in pairs}
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} stands there twice")
    return found


_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAYBE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # of text before it is parsed: escapes too


def _check_tree(value: Any, where: str | File, most: int, strings: bool) -> None:
    level, depth = [value], 0
    while level:
        if strings and any(_SURROGATE.search(text) for text in _strings(level)):
            raise UserError(f"{where} holds half of a surrogate pair, which is no character; make it again")
        level = [v for v in level if isinstance(v, dict | list)]
        if level and (depth := depth + 1) > most:
            raise UserError(f"{where} is nested more than {most} deep; it is not what its name says")
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]


def _strings(values: list[Any]) -> Iterator[str]:
    for value in values:
        yield from [value] if isinstance(value, str) else value if isinstance(value, dict) else ()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    return [_without_nan(v) for v in value] if isinstance(value, list | tuple) else value


def _check_events(events: Iterator[Any], where: str | File) -> None:
    """Counts the nodes of a YAML document with every alias expanded, and its depth."""
    total, sizes, open_nodes = 0, dict[str, int](), list[tuple[str | None, int]]()
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise UserError(f"{where} uses *{event.anchor} before &{event.anchor} or inside of it; write it out")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, total))
            elif event.anchor:
                sizes[event.anchor] = 1
            if isinstance(event, yaml.ScalarEvent) and _long_number(event):
                raise UserError(
                    f"{where} holds a number of {len(event.value):,} digits, expected at most {YAML_NUMBER:,}"
                )
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
        if total > YAML_NODES or len(open_nodes) > DEPTH:
            what = f"nested more than {DEPTH} deep" if len(open_nodes) > DEPTH else f"more than {YAML_NODES:,} nodes"
            raise UserError(f"{where} is {what} when its aliases are expanded; it was not read")


def _long_number(event: Any) -> bool:
    return len(event.value) > YAML_NUMBER and event.style is None and event.value[0] in "+-.0123456789"
