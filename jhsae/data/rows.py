"""Streams one column of JSON, JSON Lines and Parquet files; errors in other columns are ignored.

A row is a mapping with or without the column; no schema is inferred from other rows. Files are streamed, and at
most one row of JSON, or one batch of Parquet, is in memory.
"""

import codecs
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from jhsae.errors import UserError, nearest

ROW_BYTES = 2**25  # of one row, or one document: a longer one is not a document
PARQUET_ROWS = 256
BLOCK = 2**16


class TooDeep:
    """Placeholder of a row that is nested too deeply to be parsed."""


Row = dict[str, Any] | type[TooDeep]


def json_rows(file: Any, what: str) -> Iterator[Row]:
    """The objects of JSON Lines, or of one JSON array. A string is a row whose one column is ``text``.

    Invalid UTF-8 becomes lone surrogates, so that it matters only in the column that is read.
    """
    number, first = 1, file.readline(BLOCK).removeprefix(codecs.BOM_UTF8)
    while first.isspace():
        number, first = number + 1, file.readline(BLOCK)
    values = _array(first, file, what) if first.lstrip().startswith(b"[") else _lines(first, number, file, what)
    for number, value in enumerate(values, 1):
        if isinstance(value, str):
            value = {"text": value}
        if value is not TooDeep and not isinstance(value, dict):
            raise UserError(f"{what}, row {number}, holds {type(value).__name__}, expected an object: {{...}}")
        yield value


def parquet_rows(file: Any, column: str, what: str) -> Iterator[Row]:
    """The rows of a Parquet file; other columns are not read. `UserError` where the column is missing."""
    table = pyarrow.parquet.ParquetFile(file)
    names = table.schema_arrow.names
    if column not in names:
        raise UserError(f"the dataset {what} has no column '{column}'" + nearest(column, names))
    for batch in table.iter_batches(PARQUET_ROWS, columns=[column]):
        for value in _values(batch.column(column)):
            yield {column: value}


def _values(array: Any) -> Iterator[Any]:
    """Python values; text through its bytes, which may be invalid UTF-8."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    plain = (array.cast(pa.large_binary()) if text else array).to_pylist()
    return (v.decode("utf-8", "surrogateescape") if text and v is not None else v for v in plain)


def _lines(line: bytes, number: int, file: Any, what: str) -> Iterator[Any]:
    """One value per line, starting in line `number`; empty lines are skipped."""
    if line and not line.endswith(b"\n"):
        line += file.readline(ROW_BYTES)
    while line:
        if len(line) > ROW_BYTES:
            raise UserError(f"{what}, line {number}, has more than {ROW_BYTES:,} bytes, expected one document a line")
        if not line.isspace():
            yield _value(line, number, what)
        number, line = number + 1, file.readline(ROW_BYTES + 1)


def _value(line: bytes, number: int, what: str) -> Any:
    text = line.decode("utf-8", "surrogateescape")
    try:
        return json.loads(text)
    except RecursionError:
        return TooDeep
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg}, column {error.colno}"
            raise UserError(f"the dataset {what} cannot be read: line {number} is not JSON ({reason})") from error
        return json.loads(text, parse_int=len)  # an integer of more digits than Python converts


def _array(first: bytes, file: Any, what: str) -> Iterator[Any]:
    """The values of one array, decoded as they arrive."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    scan = json.JSONDecoder().raw_decode
    text, size, end = decode(first).lstrip()[1:].lstrip(), BLOCK, False
    for number in range(1, 2**62):
        while not end and not text:
            text, end = _more(text, file, decode, BLOCK)
        if text.startswith("]"):
            if text[1:].strip() or file.read(BLOCK).strip():
                raise UserError(f"{what} holds more than one JSON array; write one array, or an object a line")
            return
        size = BLOCK
        while True:
            try:
                value, stop = scan(text)
                break
            except RecursionError as error:
                raise UserError(f"{what}, row {number}, is nested too deeply to be read; remove the row") from error
            except json.JSONDecodeError as error:
                if end or len(text) > ROW_BYTES:
                    reason = "the file ends in it" if end else f"{error.msg}, or more than {ROW_BYTES:,} letters"
                    raise UserError(
                        f"the dataset {what} cannot be read: row {number} is not JSON ({reason})"
                    ) from error
                text, end = _more(text, file, decode, size)
                size *= 2
        yield value
        text = text[stop:].lstrip()
        while not end and not text:
            text, end = _more(text, file, decode, BLOCK)
        if text.startswith(","):
            text = text[1:].lstrip()
        elif not text.startswith("]"):
            raise UserError(f"the dataset {what} cannot be read: after row {number} a comma or ] was expected")


def _more(text: str, file: Any, decode: Any, size: int) -> tuple[str, bool]:
    """`text` with the next bytes of the file, and whether the file has ended."""
    data = file.read(size)
    return (text + decode(data, not data)).lstrip(), not data


def first_with(rows: Iterator[Row], column: str, most: int = 1000) -> tuple[list[Row], list[str]]:
    """The rows up to the first with the column, and the columns seen where none has it."""
    seen: dict[str, None] = {}
    taken: list[Row] = []
    for row in islice(rows, most):
        taken.append(row)
        if isinstance(row, dict):
            if column in row:
                return taken, []
            seen |= dict.fromkeys(row)
    return taken, list(seen)
