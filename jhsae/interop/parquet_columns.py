"""Columns of a Parquet file: activations as a list of numbers in each row, and labels as one value in each row.

Activations are decoded by row group, some rows at a time. Width and number of rows come from the file's own footer,
and are compared with what is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from jhsae.data.from_array import BadRowsError, Block
from jhsae.errors import UserError
from jhsae.files.bounded import MIB, reason, regular_file

PIECE_BYTES = 16 * MIB
WIDTH = 2**20


@dataclass(frozen=True, eq=False)
class ParquetColumn:
    """One column of a Parquet file."""

    path: Path
    name: str
    file: Any

    @property
    def dtype(self) -> str:
        """The type of a value, or of the numbers of a list; that of floats begins with "float"."""
        kind = self._type.value_type if _is_list(self._type) else self._type
        return f"float, {kind}" if pa.types.is_floating(kind) else f"lists ({kind})" if _is_list(kind) else str(kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, width) of a column of lists, (rows,) of another."""
        rows = self.file.metadata.num_rows
        return (rows, self._width()) if _is_list(self._type) else (rows,)

    @property
    def _type(self) -> Any:
        return self.file.schema_arrow.field(self.name).type

    def blocks(self, start: int) -> tuple[tuple[int, ...], int, list[Block]]:
        """The rows as blocks, one per row group; as `jhsae.data.from_array.blocks_of`."""
        if len(self.shape) != 2:
            raise UserError(
                f"{self.path}: '{self.name}' holds one {self.dtype} in each row, expected a list of numbers; write the "
                "activations of a row as one list"
            )
        rows, width = self.shape
        if not self.dtype.startswith("float"):
            raise UserError(f"{self.path}: '{self.name}' holds lists of {self.dtype}, expected lists of floats")
        if not rows or not width:
            raise UserError(f"{self.path} has shape {[rows, width]}, expected at least one row of at least one number")
        blocks, first = [], 0
        for group in range(self.file.metadata.num_row_groups):
            count = self.file.metadata.row_group(group).num_rows
            read = partial(self._rows, group, width)
            blocks += [Block(start + first, start + first + count, read, str(self.path), first)] if count else []
            first += count
        return (rows,), width, blocks

    def values(self) -> np.ndarray:
        """The values of a column of labels."""
        if len(self.shape) != 1:
            raise UserError(f"{self.path}: '{self.name}' holds lists, expected one value in each row")
        try:
            found = self.file.read([self.name]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error
        if found.null_count:
            raise UserError(
                f"{self.path}: '{self.name}' is null in {found.null_count:,} rows, expected a value in each"
            )
        return found.to_numpy() if pa.types.is_integer(found.type) else np.asarray(found.to_pylist(), object)

    def _width(self) -> int:
        """Numbers of a list, by the footer."""
        widths = {float(self._type.list_size)} if pa.types.is_fixed_size_list(self._type) else set()
        for group in [] if widths else map(self.file.metadata.row_group, range(self.file.metadata.num_row_groups)):
            leaves = [group.column(i) for i in range(group.num_columns)]
            own = [leaf for leaf in leaves if leaf.path_in_schema.split(".")[0] == self.name]
            widths |= {leaf.num_values / group.num_rows for leaf in own if group.num_rows}
        if len(widths) > 1 or any(w != int(w) or w > WIDTH for w in widths):
            shown = ", ".join(f"{w:,.10g}" for w in sorted(widths)[:4])
            raise UserError(
                f"{self.path}: '{self.name}' holds {shown} numbers per row on average, expected lists of one length, "
                f"at most {WIDTH:,}"
            )
        return int(widths.pop()) if widths else 0

    def _rows(self, group: int, width: int) -> Iterator[np.ndarray]:
        """The rows of a row group, in pieces."""
        size = max(1, PIECE_BYTES // (4 * width))
        try:
            for batch in self.file.iter_batches(size, row_groups=[group], columns=[self.name]):
                yield self._numbers(batch.column(0), width)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error

    def _numbers(self, lists: Any, width: int) -> np.ndarray:
        if lists.null_count:
            raise BadRowsError(f"{self.path}: '{self.name}' is null in a row, expected {width} numbers; leave it out")
        if not pa.types.is_fixed_size_list(lists.type) and (wrong := np.diff(lists.offsets) != width).any():
            found = int(np.diff(lists.offsets)[np.argmax(wrong)])
            raise BadRowsError(
                f"{self.path}: '{self.name}' has {found} numbers in a row, expected {width} as in others"
            )
        values = lists.flatten()
        if values.null_count:
            raise BadRowsError(f"{self.path}: '{self.name}' has a null among its numbers; leave such rows out")
        return values.to_numpy(zero_copy_only=False).reshape(len(lists), width)


def columns_of(path: Path) -> dict[str, ParquetColumn]:
    """The columns of a Parquet file, by name. `UserError`: the file cannot be read."""
    regular_file(path)
    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        names = file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    return {name: ParquetColumn(path, name, file) for name in names}


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _damaged(path: Path, error: BaseException) -> UserError:
    return BadRowsError(f"{path} cannot be read as Parquet ({reason(error)}); copy or make it again")
