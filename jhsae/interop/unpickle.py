"""The only place that opens a pickle: a torch state dict, on request, and then tensors and plain values alone.

A pickle can run code when it is read. So a ``.pt`` file is refused unless the caller says ``unpickle=True``, and even
then torch reads it with ``weights_only=True``, which refuses everything but tensors and plain Python values. torch is
imported here, when it is needed: nothing else of the package needs it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jhsae.errors import UserError
from jhsae.interop import tensors


def state_dict(path: str | Path, unpickle: bool) -> dict[str, Any]:
    """The entries of a torch state dict: float32 and integer arrays, and plain values as they are.

    `UserError`: `unpickle` is False, torch is not installed, the file cannot be read or holds other objects.
    """
    path = tensors.existing(path)
    if not unpickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is read; write unpickle=True where you trust it, or put "
            f"a {path.stem}.safetensors of the same tensors beside it"
        )
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs torch to be read, which is not installed; pip install torch") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile pickle raises whatever its bytes lead to
        raise UserError(f"{path} is not a state dict of tensors and plain values ({_first(error)})") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError(f"{path} holds a {type(found).__name__}, expected a state dict: tensors by their names")

    def plain(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            value = value.float()
        return np.asarray(value.detach().resolve_conj().resolve_neg().to_dense().numpy())

    return {key: plain(value) for key, value in found.items()}


def _first(error: Exception) -> str:
    """torch's messages go on for paragraphs, with advice that would lower the guard."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
