"""The arrays of a store: sharded zarr v3 through tensorstore, with a checksum per chunk."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from jhsae.data.files import short
from jhsae.data.layout import ArrayLayout
from jhsae.data.storage import Channels
from jhsae.errors import UserError


def create(root: ts.KvStore, layout: ArrayLayout) -> ts.TensorStore:
    """Creates an array below `root`, replacing one left by an interrupted write."""
    return _open(root, layout, {"create": True, "delete_existing": True})


def existing(root: ts.KvStore, layout: ArrayLayout, write: bool = False, zeros: bool = False) -> ts.TensorStore:
    """The array below `root`, for reading, and for writing too if `write`.

    Reading a chunk that is missing is an error; with `zeros` it reads as zeros, as versions before format 3 left them
    out.

    Raises:
        UserError: There is no array, or it does not match `layout`.
    """
    return _open(root, layout, {"open": True, "read": True, "write": write}, zeros)


def _open(root: ts.KvStore, layout: ArrayLayout, how: dict[str, Any], zeros: bool = False) -> ts.TensorStore:
    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": (root / f"{layout.name}/").spec().to_json(),
        "metadata": layout.metadata(),
        "fill_missing_data_reads": zeros,
        "store_data_equal_to_fill_value": True,  # so that an absent chunk is an error, not zeros
    }
    try:
        array = ts.open(spec, **how).result()
    except ValueError as error:
        if how.get("create"):  # writers pass create
            raise
        raise UserError(
            f"the array {root.url}{layout.name} cannot be opened as the manifest describes it ({short(error)}); the "
            "store is damaged, harvest it again"
        ) from error
    if array.fill_value != 0:
        raise UserError(
            f"the array {root.url}{layout.name} has the fill value {array.fill_value}, expected 0; harvest it again"
        )
    return array


def channels(root: ts.KvStore, layout: ArrayLayout) -> Channels:
    """The mean and the standard deviation of every channel of an int8 store."""
    return Channels(*Pending([existing(root, layout)], 0, 2, "channels").result())


class Pending:
    """A pending read of the same rows of one or more arrays; `decode` combines them."""

    def __init__(
        self,
        arrays: Sequence[ts.TensorStore],
        start: int,
        stop: int,
        what: str,
        decode: Callable[..., np.ndarray] = lambda rows: rows,
    ):
        self._futures = [array[start:stop].read() for array in arrays]
        self._what = f"rows {start} to {stop} of {what}"
        self._decode = decode

    def result(self) -> np.ndarray:
        """The rows; UserError when a checksum does not match."""
        try:
            return self._decode(*(future.result() for future in self._futures))
        except ValueError as error:
            raise UserError(
                f"{self._what} cannot be read: {short(error)}; the store is damaged, harvest it again"
            ) from error
