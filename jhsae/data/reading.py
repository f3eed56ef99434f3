"""Reads documents from text files and datasets; every read error is a `UserError` that names the file.

A row without text is no error: it is a `Skipped`, which the source counts.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from enum import StrEnum
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from datasets.utils.file_utils import xopen

from jhsae.data.rows import ROW_BYTES, Row, first_with, json_rows, parquet_rows
from jhsae.errors import UserError, nearest

COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
JSON = (".jsonl", ".json")
PARQUET = ".parquet"
MODULES = ("json", "parquet", "csv", "text", "arrow", "cache")  # readers of `datasets` that hold text; none runs code


class Skipped(StrEnum):
    """Reason why a row is not a document."""

    NULL = "null or missing"
    EMPTY = "empty"
    NOT_UNICODE = "not Unicode"
    TOO_DEEP = "nested too deeply"


def kind(path: str | Path) -> str:
    """The extension of a file without that of its compression: ``.jsonl`` of ``a.jsonl.gz``."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def opened(path: Path, mode: str = "rb", **options: Any) -> Any:
    """Opens a local file, decompressed by its extension."""
    return COMPRESSED.get(path.suffix, open)(path, mode, **options)


def paragraphs(path: Path) -> Iterator[str]:
    """Paragraphs of a UTF-8 file, separated by blank lines; decompressed by its extension."""
    lines: list[str] = []
    size = number = 0
    with opened(path, "rt", encoding="utf-8-sig") as file:
        for line in _lines(file, path):
            number += 1
            size += len(line)
            if size > ROW_BYTES:
                raise UserError(
                    f"the paragraph of {path} that holds line {number} has more than {ROW_BYTES:,} letters; a blank "
                    "line ends a document: write some, or use .jsonl"
                )
            if line.strip():
                lines.append(line)
                continue
            if lines:
                yield "".join(lines).rstrip("\n")
            lines, size = [], 0
    if lines:
        yield "".join(lines).rstrip("\n")


def _lines(file: Any, path: Path) -> Iterator[str]:
    number = 0
    try:
        while line := file.readline(ROW_BYTES + 1):
            number += 1
            yield line
    except UnicodeDecodeError as error:
        raise UserError(
            f"the text file {path} is not readable as UTF-8 text (after line {number}: {error}); convert it to UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"the text file {path} is not readable as UTF-8 text ({reason(error)})") from error


def file_texts(path: Path, column: str) -> Iterator[str | Skipped]:
    """The text of one column of a local .jsonl, .json or .parquet file, opened lazily."""
    with opened(path) as file:
        yield from column_of(_rows(file, column, str(path)), column, str(path))


def check_file(path: Path, column: str) -> None:
    """Raises `UserError` where the file cannot be opened, has no such column, or holds no text in its first row."""
    with opened(path) as file:
        column_of(_rows(file, column, str(path)), column, str(path))


def _rows(file: Any, column: str, what: str) -> Iterator[Row]:
    return parquet_rows(file, column, what) if kind(what) == PARQUET else json_rows(file, what)


def dataset_texts(
    name: str, config: str | None, revision: str | None, split: str, column: str, streaming: bool
) -> Iterator[str | Skipped]:
    """The text of one column and split of a dataset on the hub, or of a local folder of data files.

    JSON and Parquet are read here, so that errors in other columns are ignored; the rest by the `datasets` library.
    """
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        module = type(builder).__module__.rpartition(".")[2]
        files = {str(key): value for key, value in (builder.config.data_files or {}).items()}
    except Exception as error:  # any exception of a third-party library on an invalid file
        raise UserError(f"the dataset {name} cannot be opened: {reason(error)}") from error
    local = Path(name).is_dir()
    if module not in MODULES:
        raise UserError(f"the dataset {name} is of the kind {module}, expected one of {', '.join(MODULES)}")
    if local and split not in files and (streaming or "[" not in split):
        raise UserError(f"the dataset {name} has no split '{split}'" + nearest(split, files))
    if not local and any("://" not in file for file in files.get(split, [])):
        raise UserError(
            f"'{name}' is a kind of file and no dataset; name a dataset of the hub, or a folder as ./{name}"
        )
    own = split in files and (local or streaming) and all(kind(file) in (*JSON, PARQUET) for file in files[split])
    if module in ("json", "parquet") and own and getattr(builder.config, "field", None) is None:
        if local:
            check_file(Path(files[split][0]), column)
            return chain.from_iterable(file_texts(Path(file), column) for file in files[split])
        return chain.from_iterable(column_of(_hub_rows(file, column), column, file) for file in files[split])
    streaming = streaming or (local and split in files)
    rows = _loaded(name, config, column, split=split, revision=revision, streaming=streaming)
    return column_of(rows, column, name)


def _hub_rows(file: str, column: str) -> Iterator[Row]:
    """The rows of one file on the hub, streamed."""
    with xopen(datasets.StreamingDownloadManager().extract(file), "rb") as stream:
        yield from _rows(stream, column, file)


def _loaded(name: str, config: str | None, column: str, **options: Any) -> Iterable[Row]:
    """``datasets.load_dataset``, of which only one column is decoded."""
    try:
        dataset = datasets.load_dataset(name, config, **options)
        names = dataset.column_names
        if names is not None and column not in names:
            raise UserError(f"the dataset {name} has no column '{column}'" + nearest(column, names))
        return dataset if names is None else dataset.select_columns([column])
    except StopIteration:  # the message of `datasets` for no rows to infer the columns from
        return []
    except UserError:
        raise
    except Exception as error:  # any exception of a third-party library on an invalid file
        raise UserError(f"the dataset {name} cannot be opened: {reason(error)}") from error


def column_of(rows: Iterable[Row], column: str, what: str) -> Iterator[str | Skipped]:
    """The text of one column. The first row that has the column is read at once, to fail early.

    Raises:
        UserError: no such column in the first rows, or a row of it that holds anything but text.
    """
    iterator = _readable(rows, what)
    first, seen = first_with(iterator, column)
    if seen:
        raise UserError(f"the dataset {what} has no column '{column}'" + nearest(column, seen))
    texts = [_text(row, number, column, what) for number, row in enumerate(first, 1)]
    return chain(texts, (_text(row, number, column, what) for number, row in enumerate(iterator, len(first) + 1)))


def _text(row: Row, number: int, column: str, what: str) -> str | Skipped:
    if not isinstance(row, dict):
        return Skipped.TOO_DEEP
    value = row.get(column)
    if value is None:
        return Skipped.NULL
    if not isinstance(value, str):
        raise UserError(
            f"column '{column}' of {what} holds {type(value).__name__}, text was expected (row {number}); write "
            "column: <a text column>, or mend the row"
        )
    if not value.strip():
        return Skipped.EMPTY
    return value if _is_unicode(value) else Skipped.NOT_UNICODE


def _is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _readable(rows: Iterable[Row], what: str) -> Iterator[Row]:
    """Yields the rows; errors of the libraries that read them become `UserError`."""
    number = 0
    try:
        for row in rows:
            number += 1
            yield row
    except UserError:
        raise
    except Exception as error:  # any exception of a third-party library on an invalid file
        raise UserError(f"the dataset {what} cannot be read: {reason(error)} (after row {number})") from error


def reason(error: BaseException) -> str:
    """An error's text in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


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
