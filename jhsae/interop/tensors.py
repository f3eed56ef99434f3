"""Reads tensors and JSON of other libraries, checked, without pickles.

Headers are read first. A tensor is read only when it is taken, after its dtype and shape were checked; errors name the
file, the key, what was got and what was expected. float16 and bfloat16 become float32, which is exact.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jhsae.errors import UserError, nearest
from jhsae.files import archives, bounded, tensor_files
from jhsae.files.bounded import MIB

REDUCED = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
# dtypes of a safetensors header -> NumPy kinds
KINDS = {"F64": "f", "F32": "f", "F16": "f", "BF16": "f"}
KINDS |= {"I64": "i", "I32": "i", "I16": "i", "I8": "i", "U64": "u", "U32": "u", "U16": "u", "U8": "u", "BOOL": "b"}
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save, new and old
CONFIG_BYTES, CONFIG_DEPTH = 4 * MIB, 32
LAYERS = 10_000  # an upper bound for language models

Shape = tuple[int | None, ...]


class Tensors(Mapping[str, Any]):
    """Lazily read tensors by key, and the other values of a state dict.

    `shapes` and `kinds` (NumPy's dtype kinds) come from the headers.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        kinds: Mapping[str, str],
        read: Callable[[str], np.ndarray],
        others: Mapping[str, Any] | None = None,
    ):
        self.shapes, self.kinds, self._read, self._others = shapes, kinds, read, dict(others or {})

    def __getitem__(self, key: str) -> Any:
        if key in self.shapes:
            return self._read(key)
        return self._others[key]

    def __contains__(self, key: object) -> bool:  # does not read it
        return key in self.shapes or key in self._others

    def __iter__(self) -> Iterator[str]:
        return iter([*self.shapes, *self._others])

    def __len__(self) -> int:
        return len(self.shapes) + len(self._others)

    def beside(self, others: Mapping[str, Any]) -> "Tensors":
        """The same tensors with more values."""
        return Tensors(self.shapes, self.kinds, self._read, self._others | dict(others))


def load(path: str | Path) -> Tensors:
    """The tensors of a safetensors file; bfloat16 and float16 become float32.

    `UserError`: no such file, a pickle or zip (torch.save) under this name, a file whose header does not fit it, a
    tensor of a type that NumPy has no counterpart for.
    """
    path = existing(path)
    try:
        header = tensor_files.tensor_header(path)
    except UserError:
        _refuse_pickle(path)  # only now: a safetensors file too may start with these bytes
        raise
    for key, info in header.items():
        if info.dtype not in KINDS:
            raise UserError(f"{path}: '{key}' is of type {info.dtype}, expected one of {', '.join(KINDS)}")

    def read(key: str) -> np.ndarray:
        try:
            with safe_open(path, framework="np") as file:
                return widened(file.get_tensor(key))
        except (SafetensorError, OSError, MemoryError) as error:
            raise UserError(f"{path} cannot be read as safetensors ({error}); copy or download it again") from error

    shapes = {key: info.shape for key, info in header.items()}
    return Tensors(shapes, {key: KINDS[info.dtype] for key, info in header.items()}, read)


def load_npz(path: str | Path) -> Tensors:
    """The arrays of an npz file. `UserError`: no such file, not one of plain arrays, one that expands too far."""
    path = existing(path)
    header = archives.npz_header(path)

    def read(key: str) -> np.ndarray:
        return widened(archives.load_npz(path, keys=[key])[key])

    shapes = {key: info.shape for key, info in header.items()}
    return Tensors(shapes, {key: info.dtype.kind for key, info in header.items()}, read)


def take(tensors: Mapping[str, Any], key: str, shape: Shape, file: str | Path, whole: bool = False) -> np.ndarray:
    """The tensor `key` as float32, of exactly `shape`; None in `shape` matches any size of at least 1.

    Weights are floats: integers, which may be quantised, are accepted as scalars, or anywhere with `whole`.
    `UserError`: no such key, another shape, not a numeric array, NaN or infinity.
    """
    fits(tensors, key, shape, file, whole)
    try:
        with np.errstate(over="ignore"):  # of a float64 too large for float32, which becomes infinite
            array = np.asarray(tensors[key])
            found = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    except MemoryError as error:
        raise UserError(f"{file}: '{key}' of shape {written(shape)} does not fit into memory") from error
    if not np.isfinite(found).all():
        raise UserError(f"{file}: '{key}' holds NaN or infinity; no SAE can be built from it")
    return found


def take_all(tensors: Mapping[str, Any], shapes: Mapping[str, Shape], file: str | Path) -> dict[str, np.ndarray]:
    """`take` of several tensors; none is read before all shapes are checked."""
    for key, shape in shapes.items():
        fits(tensors, key, shape, file)
    return {key: take(tensors, key, shape, file) for key, shape in shapes.items()}


def fits(tensors: Mapping[str, Any], key: str, shape: Shape, file: str | Path, whole: bool = False) -> tuple[int, ...]:
    """The shape of the tensor `key`, which is not read. Raises the `UserError` of `take` for another than `shape`."""
    if key not in tensors:
        raise UserError(f"{file}: no tensor '{key}', expected one of shape {written(shape)}{nearest(key, tensors)}")
    if isinstance(tensors, Tensors) and key in tensors.shapes:
        kind, what, got = tensors.kinds[key], f"array of kind {tensors.kinds[key]!r}", tuple(tensors.shapes[key])
    elif isinstance(array := tensors[key], np.ndarray):
        kind, what, got = array.dtype.kind, f"array of {array.dtype.str}", array.shape
    else:
        kind, what, got = "", type(array).__name__, ()
    if not kind or kind not in "fiub":
        raise UserError(f"{file}: '{key}' is of type {what}, expected a tensor of shape {written(shape)}")
    if len(got) != len(shape) or not all(n > 0 and m in (None, n) for n, m in zip(got, shape, strict=True)):
        raise UserError(f"{file}: '{key}' has shape {written(got)}, expected {written(shape)}")
    if kind != "f" and shape and not whole:
        raise UserError(f"{file}: '{key}' holds integers, which may be quantised, expected floats; save it as float32")
    return got


def refuse_unknown(tensors: Iterable[str], known: Iterable[str], file: str | Path) -> None:
    """`UserError` for a tensor that the format does not have: ignoring it could change what the SAE computes."""
    known = sorted(known)
    for key in sorted(set(tensors) - set(known)):
        raise UserError(f"{file}: unknown tensor '{key}'; this format has {', '.join(known)}")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file, within the limits of `jhsae.files.bounded`. `UserError`: no such file, not JSON."""
    return bounded.read_object(existing(path), CONFIG_BYTES, CONFIG_DEPTH)


def layer_number(digits: str, file: str | Path) -> int:
    """The number of a layer from a name such as ``layers.5``."""
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 9 or int(digits) > LAYERS:
        raise UserError(f"{file}: the layer is {digits[:40]!r}, expected a number of at most {LAYERS}")
    return int(digits)


def existing(path: str | Path) -> Path:
    """`path`, if it is a regular file; `UserError` otherwise."""
    return Path(bounded.regular_file(path))


def _refuse_pickle(path: Path) -> None:
    """`UserError` for a file that starts like one of torch.save, whatever its name."""
    if bounded.read_start(path, 4).startswith(PICKLES):
        raise UserError(
            f"{path} is a pickle or zip archive (torch.save), expected safetensors; pickles can run code and are not "
            "read here: convert it with safetensors.torch.save_file where you trust it"
        )


def widened(array: np.ndarray) -> np.ndarray:
    """bfloat16 and float16 as float32; other dtypes unchanged."""
    return array.astype(np.float32) if array.dtype in REDUCED else array


def written(shape: Shape) -> str:
    """A shape for messages: ``[512, any]``, or ``[] (a scalar)``."""
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]" + " (a scalar)" * (not shape)
