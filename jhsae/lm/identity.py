"""Identity of a language model, independent of its path: a hash of its settings and weights.

Hashed are the settings of config.json that affect the model, and of every tensor its name, type, shape and bytes: all
of them in a checkpoint of up to 64 MiB and in a tensor of up to 64 KiB, else 16 blocks of 4 KiB, evenly spread from the
first byte to the last. The distribution of tensors over files does not matter. A large model takes a second or two this
way; a change that touches only bytes between the blocks, such as one row of a large embedding, is not detected. A
missing shard changes the hash.
"""

import hashlib
import json
from typing import Any

import numpy as np

from jhsae.lm.tensors import CheckpointTensors

WHOLE_CHECKPOINT = 2**26
WHOLE_TENSOR = 2**16
BLOCKS, BLOCK = 16, 2**12
# Settings that no forward pass reads, and that tools rewrite when they copy a checkpoint.
NOTES = {"_name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map", "use_cache"}
NOTES |= {"torch_dtype", "dtype", "unsloth_version", "_attn_implementation_autoset"}


def identity(settings: dict[str, Any], tensors: CheckpointTensors) -> str:
    """The hash of a checkpoint: `settings` is its parsed config.json."""
    kept = {key: value for key, value in settings.items() if key not in NOTES}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    present = [name for name in sorted(tensors.names) if tensors.present(name)]
    sizes = {name: tensors.info(name).stop - tensors.info(name).start for name in present}
    limit = WHOLE_CHECKPOINT if sum(sizes.values()) <= WHOLE_CHECKPOINT else WHOLE_TENSOR
    for name in present:
        info = tensors.info(name)
        digest.update(json.dumps([name, info.dtype, list(info.shape)]).encode())
        digest.update(_sample(tensors.raw(name), limit))
    return digest.hexdigest()


def _sample(values: np.ndarray, limit: int) -> bytes:
    if len(values) <= limit:
        return values.tobytes()
    starts = np.linspace(0, len(values) - BLOCK, BLOCKS).astype(np.int64)
    return b"".join(values[start : start + BLOCK].tobytes() for start in starts)
