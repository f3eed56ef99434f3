"""The only place that opens a pickle: a torch state dict, on request, and then tensors and plain values alone.

A pickle can run code when it is read. So a ``.pt`` file is refused unless the caller passes ``unpickle=True``, and even
then torch reads it with ``weights_only=True``, which refuses everything but tensors and plain Python values. Before
torch sees it, the archive must be one that `torch.save` writes: separate members that are not packed, and a pickle
that names nothing but tensors, so that no byte array of any size is made. torch is imported here, when it is needed:
nothing else of the package needs it.
"""

import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jhsae.errors import UserError
from jhsae.files import archives
from jhsae.files.bounded import MIB, reason
from jhsae.files.forms import brief
from jhsae.interop import tensors
from jhsae.interop.tensors import Tensors

PICKLE_BYTES = 2 * MIB  # of the description of the tensors
PICKLED = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\.storage (Untyped|Typed)Storage|"
    r"torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|torch (Size|float8_\w+|u?int\d+)"
)
NAMED_ON_STACK = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}
FLOATS, WHOLE = ("float64", "float32", "float16", "bfloat16"), ("int64", "int32", "int16", "int8", "uint8", "bool")


def state_dict(path: str | Path, unpickle: bool) -> Tensors:
    """The entries of a torch state dict: float32 and integer arrays, and plain values as they are.

    `UserError`: `unpickle` is False, torch is not installed, the file cannot be read or holds other objects.
    """
    path = tensors.existing(path)
    found = _loaded(path, unpickle)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError(f"{path} holds a {type(found).__name__}, expected a state dict: tensors by their names")
    held = _tensors(found, path)

    def read(key: str) -> np.ndarray:
        tensor = held[key].detach()
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())

    kinds = {key: "f" if tensor.is_floating_point() else "i" for key, tensor in held.items()}
    others = {key: value for key, value in found.items() if key not in held}
    return Tensors({key: tuple(tensor.shape) for key, tensor in held.items()}, kinds, read, others)


def mapped_tensors(path: str | Path, unpickle: bool) -> dict[str, Any]:
    """The torch tensors of a file by name, of a file of one tensor under ""; mapped, so that none is in memory.

    `UserError`: as of `state_dict`.
    """
    path = tensors.existing(path)
    found = _loaded(path, unpickle, mmap=True)
    found = found if isinstance(found, dict) else {"": found}
    held = _tensors({str(key): value for key, value in found.items()}, path)
    if not held:
        kind = type(found.get("", found)).__name__
        raise UserError(f"{path} holds a {kind} without a tensor, expected a tensor, or tensors by their names")
    return {key: tensor.detach() for key, tensor in held.items()}


def _loaded(path: Path, unpickle: bool, **options: Any) -> Any:
    """What torch reads of a checked file, with ``weights_only=True``."""
    if not unpickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is read; write unpickle=True where you trust it, or put "
            f"a {path.stem}.safetensors of the same tensors beside it"
        )
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs torch to be read, which is not installed; pip install torch") from error
    _check(path)
    try:
        with warnings.catch_warnings():  # of unusual files, beside the error that they end with
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, **options)
    except Exception as error:  # a broken or hostile pickle raises whatever its bytes lead to
        raise UserError(f"{path} is not a state dict of tensors and plain values ({_first(error)})") from error


def _tensors(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """The entries that are tensors, each checked."""
    import torch

    held = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
    for key, tensor in held.items():
        _check_tensor(tensor, f"{path}: '{key}'" if key else f"{path}")
    return held


def _check(path: Path) -> None:
    """`UserError` for anything but an archive as `torch.save` writes it."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise UserError(
                    f"{path} is not a state dict of tensors and plain values in a zip archive, as torch.save has "
                    "written since version 1.6; load it with torch where you trust it, and save it again"
                )
            archives.check_zip_list(file, path)
            with zipfile.ZipFile(file) as archive:
                archives.check_zip(archive, path, archives.size_of(path))
                members = archive.infolist()
                if any(info.compress_type != zipfile.ZIP_STORED for info in members):
                    raise UserError(f"{path} is packed, as torch.save never does; load and save it again with torch")
                pickles = [info for info in members if info.filename.endswith("data.pkl")]
                if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
                    raise UserError(f"{path} is not a state dict of tensors and plain values (no data.pkl of its size)")
                _check_pickle(archive.read(pickles[0]), path)
    except UserError:
        raise
    except archives.ZIP_ERRORS as error:
        raise UserError(f"{path} is not a state dict of tensors and plain values ({reason(error)})") from error


def _check_pickle(data: bytes, path: Path) -> None:
    """`UserError` for a pickle that names anything but tensors and their storages."""
    for opcode, argument, _ in pickletools.genops(data):
        name = f"{argument}" if opcode.name == "GLOBAL" else opcode.name
        if opcode.name in NAMED_ON_STACK or (opcode.name == "GLOBAL" and not PICKLED.fullmatch(name)):
            raise UserError(f"{path} is not a state dict of tensors and plain values (its pickle has {brief(name)})")


def _check_tensor(tensor: Any, where: str) -> None:
    """`UserError` for a tensor of another type, one that is not laid out plainly, or one larger than its bytes."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in FLOATS + WHOLE:
        raise UserError(f"{where} is of type {kind}, expected one of {', '.join(FLOATS + WHOLE)}")
    if str(tensor.layout) != "torch.strided" or tensor.is_nested or tensor.device.type != "cpu":
        raise UserError(
            f"{where} is a tensor of layout {tensor.layout}, expected a plain one; make it dense and save it"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{where} repeats its bytes to fill {list(tensor.shape)}; make it contiguous and save it again")


def _first(error: Exception) -> str:
    """torch's messages go on for paragraphs, with advice that would lower the guard."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
