"""Reading the files of other libraries: tensors and JSON in, checked arrays out, and never a pickle.

Nothing is built before every tensor that is needed was found and has its shape; what is wrong is said with the file,
the key, what stands there and what was expected. Reduced precisions become float32, which holds them exactly.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jhsae.errors import UserError, nearest

REDUCED = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
NUMBERS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save, new and old


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file, by its key; bfloat16 and float16 become float32.

    `UserError`: no such file, a pickle or zip (torch.save) under this name, a file that cannot be read, a tensor of a
    type that NumPy has no counterpart for.
    """
    path = existing(path)
    try:
        with safe_open(path, framework="np") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
            for key, kind in kinds.items():
                if kind not in NUMBERS:
                    raise UserError(f"{path}: '{key}' is of type {kind}, expected one of {', '.join(NUMBERS)}")
            return {key: widened(file.get_tensor(key)) for key in kinds}
    except (SafetensorError, OSError) as error:
        _refuse_pickle(path)  # only now: a safetensors file too may start with these bytes
        raise UserError(f"{path} cannot be read as safetensors ({error}); copy or download it again") from error


def take(tensors: Mapping[str, Any], key: str, shape: tuple[int | None, ...], file: str | Path) -> np.ndarray:
    """The tensor `key` as float32, of exactly `shape`; a None in `shape` stands for any size of at least 1.

    `UserError`: no such key, another shape, something that is not an array of numbers, NaN or infinity.
    """
    if key not in tensors:
        raise UserError(f"{file}: no tensor '{key}', expected one of shape {written(shape)}{nearest(key, tensors)}")
    array = tensors[key]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        what = f"array of {array.dtype.str}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"{file}: '{key}' is of type {what}, expected a tensor of shape {written(shape)}")
    fits = [size > 0 and expected in (None, size) for size, expected in zip(array.shape, shape, strict=False)]
    if array.ndim != len(shape) or not all(fits):
        raise UserError(f"{file}: '{key}' has shape {written(array.shape)}, expected {written(shape)}")
    with np.errstate(over="ignore"):  # of a float64 too large for float32, which becomes infinite
        found = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    if not np.isfinite(found).all():
        raise UserError(f"{file}: '{key}' holds NaN or infinity; no SAE can be built from it")
    return found


def refuse_unknown(tensors: Iterable[str], known: Iterable[str], file: str | Path) -> None:
    """`UserError` for a tensor that the format does not have: ignoring it could change what the SAE computes."""
    known = sorted(known)
    for key in sorted(set(tensors) - set(known)):
        raise UserError(f"{file}: unknown tensor '{key}'; this format has {', '.join(known)}")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. `UserError`: no such file, not JSON, not an object."""
    path = existing(path)
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected a JSON object with the keys of a config")
    return found


def setting(config: Mapping[str, Any], key: str, kind: type, file: str | Path) -> Any:
    """``config[key]``, which must be of type `kind` (an int also where a float is asked for, never a bool for an int).

    `UserError`: no such key, another type.
    """
    if key not in config:
        raise UserError(f"{file}: no key '{key}', expected {kind.__name__}{nearest(key, config)}")
    value = config[key]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{file}: '{key}' is {value!r}, expected {kind.__name__}")
    return value


def existing(path: str | Path) -> Path:
    """`path`, if it is a file; `UserError` otherwise."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file")
    if not path.exists():
        raise UserError(f"no file {path}; write the path of a file that exists")
    return path


def _refuse_pickle(path: Path) -> None:
    """`UserError` for a file that starts like one of torch.save, whatever its name says."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(PICKLES):
        raise UserError(
            f"{path} is a pickle or zip archive (torch.save), expected safetensors; pickles can run code and are not "
            "read here: convert it with safetensors.torch.save_file where you trust it"
        )


def widened(array: np.ndarray) -> np.ndarray:
    """bfloat16 and float16 as float32; everything else as it is."""
    return array.astype(np.float32) if array.dtype in REDUCED else array


def written(shape: tuple[int | None, ...]) -> str:
    """A shape in the words of a message: ``[512, any]``, or ``[] (a scalar)``."""
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]" + " (a scalar)" * (not shape)
