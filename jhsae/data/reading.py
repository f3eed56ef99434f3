"""Reads documents out of text files and datasets; whatever cannot be read is a `UserError` that names it."""

import gzip
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets

from jhsae.errors import UserError, nearest


def paragraphs(path: Path) -> Iterator[str]:
    """Runs of lines without a blank line between them; plain or gzipped UTF-8."""
    opener = gzip.open if path.suffix == ".gz" else open
    lines: list[str] = []
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines).rstrip("\n")
                    lines = []
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"the text file {path} is not readable as UTF-8 text ({error})") from error
    if lines:
        yield "".join(lines).rstrip("\n")


def load(what: str, *args: Any, **options: Any) -> Iterable[dict[str, Any]]:
    """``datasets.load_dataset``, with `what` naming the data in the error."""
    try:
        return datasets.load_dataset(*args, **options)
    except StopIteration:  # how `datasets` says that it found not one row to infer the columns from
        return []
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"the dataset {what} cannot be opened: {error}") from error


def column_of(rows: Iterable[dict[str, Any]], column: str, what: str) -> Iterator[str]:
    """The strings of one column. Reads the first row at once, so that a wrong column is found early."""
    iterator = _readable(rows, what)
    first = next(iterator, None)
    if first is None:
        return iter(())
    if column not in first:
        raise UserError(f"the dataset {what} has no column '{column}'" + nearest(column, first))
    if not isinstance(first[column], str | None):
        kind = type(first[column]).__name__
        raise UserError(f"column '{column}' of {what} holds {kind}, text was expected; write column: <a text column>")
    return (row[column] or "" for part in ([first], iterator) for row in part)


def _readable(rows: Iterable[dict[str, Any]], what: str) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"the dataset {what} cannot be read: {error}") from error


def beside(path: Path) -> str:
    """A hint at the file of the nearest name in the same folder."""
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, get_close_matches(path.name, names, n=1))


def file_sha256(path: Path) -> str:
    """The hash of a file of any size."""
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
