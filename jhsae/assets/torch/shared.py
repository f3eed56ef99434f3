"""The shared part of exported modules, written out inside each of them (`torch_module`): reading a folder, the SAE."""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

CONFIG, WEIGHTS, FORMAT = "cfg.json", "sae_weights.safetensors", 1
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LARGEST, WRITTEN = 2**22, 2**28  # bytes read as JSON; size from which on half of a file must have been written
DEPTH, RANK = 64, 16  # nested lists and objects; axes of a tensor
THROUGH = {"shift": ("", "D"), "matrix": ("", "D", "DD"), "inverse": ("", "D", "DD")}


def opened(path: Path) -> int:
    """The bytes of a regular file. ValueError: a folder, a FIFO or a device, from which reading may never end."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be opened ({error}); copy it again") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is a folder, a FIFO or a device, expected a file")
    if status.st_size > WRITTEN and 0 < 512 * getattr(status, "st_blocks", 0) < status.st_size / 2:
        raise ValueError(f"{path} has {status.st_size:,} bytes, of which most were never written; copy it again")
    return status.st_size


def small(path: Path) -> bytes:
    """A regular file of at most `LARGEST` bytes. ValueError for anything else."""
    if (size := opened(path)) > LARGEST:
        raise ValueError(f"{path} has {size:,} bytes, expected at most {LARGEST:,}")
    return path.read_bytes()


def parsed(text: bytes, where: str) -> dict[str, Any]:
    """The object in a JSON text. ValueError: no object, NaN or infinity, nesting deeper than `DEPTH`."""

    def refused(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        value = json.loads(text.decode("utf-8"), parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read as JSON ({error}); copy it again") from error
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, (dict, list))]:
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
        if (depth := depth + 1) > DEPTH:
            raise ValueError(f"{where} is nested more than {DEPTH} deep; copy it again")
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds no JSON object; copy it again")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose header must fit its size before a number is read; else a ValueError."""
    size = opened(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST, size - 8):
            raise ValueError(f"{path} is no complete safetensors file of floats; copy it again")
        header = parsed(file.read(length), f"the header of {path}")
    header.pop("__metadata__", None)
    places = {name: _place(entry, name, path, size - 8 - length) for name, entry in header.items()}
    ends = sorted((start, stop) for _, _, start, stop in places.values())
    starts, stops = [start for start, _ in ends], [0, *(stop for _, stop in ends)]
    if starts != stops[:-1] or stops[-1] != size - 8 - length:
        raise ValueError(f"{path} is no complete safetensors file of floats: its tensors overlap or leave gaps")
    data = bytearray(path.read_bytes())
    tensors = {}
    for name, (dtype, shape, start, _) in places.items():
        count = math.prod(shape)
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=8 + length + start) if count else torch.zeros(0)
        tensors[name] = flat.to(dtype).reshape(shape)
    return tensors


def _place(entry: Any, name: str, path: Path, size: int) -> tuple[torch.dtype, list[int], int, int]:
    try:
        dtype, shape, (start, stop) = DTYPES[entry["dtype"]], list(entry["shape"]), entry["data_offsets"]
        right = len(shape) <= RANK and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop))
        right = right and start <= stop <= size and stop - start == math.prod(shape) * dtype.itemsize
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no complete safetensors file of floats ({error!r}); copy it again") from error
    if not right:
        raise ValueError(f"{path} is no complete safetensors file of floats: '{name}' does not fit; copy it again")
    return dtype, shape, start, stop


def verify(folder: Path, names: tuple[str, ...]) -> None:
    """ValueError for a file whose sha256 is not the one in the folder's SHA256SUMS, where it has one."""
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        return
    lines = small(sums).decode(errors="replace").splitlines()
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in names:
        opened(folder / name)
        if known.get(name) != hashlib.sha256((folder / name).read_bytes()).hexdigest():
            raise ValueError(f"{folder / name} is damaged or was changed (see SHA256SUMS); copy it again")


def times(rows: Tensor, m: Tensor) -> Tensor:
    """Rows times a matrix, or scaled by a vector or a number."""
    return rows @ m if m.ndim == 2 else rows * m


class Config(SimpleNamespace):
    """What the SAE reads and how large it is; SAEBench reads and sets its attributes."""

    def to_dict(self) -> dict[str, Any]:
        """The attributes that go into a JSON file."""
        return {name: value for name, value in vars(self).items() if name != "metadata"}


def check_tensors(settings: Mapping[str, Any], weights: Mapping[str, Tensor], module: str) -> dict[str, list[int]]:
    """The shapes of the tensors. ValueError for settings of another format, or that describe other tensors."""
    if settings.get("format") != FORMAT:
        found = f"{CONFIG} is of format {settings.get('format')}, this module reads format {FORMAT}"
        raise ValueError(f"{found}; take the {module} that was written beside it, or update jhsae")
    got, shapes = {name: list(tensor.shape) for name, tensor in weights.items()}, settings.get("tensors")
    if not isinstance(shapes, dict):
        raise ValueError(f"{CONFIG} describes no tensors; take the one that was written beside the weights")
    for name in sorted(got.keys() | shapes.keys()):
        if got.get(name) != shapes.get(name):
            found = f"{WEIGHTS}: '{name}' has shape {got.get(name)}, but {CONFIG} describes {shapes.get(name)}"
            raise ValueError(f"{found}; the two files belong to different exports")
    return got


class Exported(torch.nn.Module):
    """`encode`, `decode`, `W_enc`, `W_dec`, `b_enc`, `b_dec`, `cfg`: what SAEBench asks of an SAE, for inference."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    norms: Tensor
    computes: Any  # with: the class of the structured weights

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]):
        super().__init__()
        settings = config.get("hsae")
        self.structure = self.computes(settings if isinstance(settings, dict) else {}, weights)
        flat = self.structure.flattened()
        self.register_buffer("norms", flat.pop("norms"))
        for name, tensor in flat.items():
            self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
        for name, kind in (("metadata", dict), ("architecture", str)):
            if not isinstance(config.get(name), kind):
                raise ValueError(f"{CONFIG}: '{name}' is {str(config.get(name))[:100]}, expected a {kind.__name__}")
        top = {name: value for name, value in config.items() if name not in ("metadata", "hsae")}
        self.cfg = Config(**{**top, **config["metadata"], "architecture_str": config["architecture"]})
        self._apply(lambda tensor: tensor)

    @classmethod
    def load(cls, folder: str | Path, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """The SAE of an exported folder. ValueError: files that are damaged or do not belong together."""
        verify(folder := Path(folder), (CONFIG, WEIGHTS))
        config = parsed(small(folder / CONFIG), str(folder / CONFIG))
        return cls(config, read_safetensors(folder / WEIGHTS)).to(device=device, dtype=dtype)

    def encode(self, x: Tensor) -> Tensor:
        """Activations [..., D] -> dense codes [..., F]."""
        return (self.structure(x.reshape(-1, x.shape[-1]).to(self.dtype)) * self.norms).reshape(*x.shape[:-1], -1)

    def decode(self, f: Tensor) -> Tensor:
        """Codes [..., F] -> reconstructed activations [..., D]."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Activations [..., D] -> their reconstruction."""
        return self.decode(self.encode(x))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which `encode` computes."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Where torch changes dtype and device (`to`, `half`, `cuda`, ...): `cfg` follows."""
        super()._apply(*args, **kwargs)
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)
        return self
