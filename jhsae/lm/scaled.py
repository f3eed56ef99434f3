"""Dequantised weights: floats unchanged, 8-bit weights multiplied by their scales as they are read.

A weight W of int8 or float8 has a tensor of scales:

- ``SCB [rows]`` (bitsandbytes 8-bit): W[i, j] SCB[i] / 127.
- ``weight_scale_inv`` (fine-grained fp8 of DeepSeek and Qwen): W[i, j] s[i // b0, j // b1], with blocks of
  ``weight_block_size``, or one scale. In spite of its name it multiplies.
- ``weight_scale`` (compressed-tensors, FBGEMM, fp8 per tensor): the same with one scale, one per row, one per
  group of a row or per named block; from int8 a ``weight_zero_point`` of the same shape is taken off first.

Scales of type E8M0, and bytes in the place of them, are powers of two: 2^(byte - 127). Activations are not rounded, as
in transformers' own dequantisation. Sources: transformers' integrations (bitsandbytes, finegrained_fp8,
compressed_tensors, fbgemm_fp8).
"""

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from jhsae.errors import UserError
from jhsae.files.tensor_files import TensorInfo
from jhsae.lm.quantised import PLAIN, block_sizes, multiplies_int8
from jhsae.lm.tensors import EIGHT_BITS, FLOATS, CheckpointTensors, Index

SCALED = ("SCB", "weight_scale_inv", "weight_scale")
# beside an 8-bit weight: what is read with it, and what concerns activations and the cache alone
COMPANIONS = (*SCALED, "weight_zero_point", "weight_format", "input_scale", "activation_scale", "input_scale_ub")
CACHE = ("k_scale", "v_scale", "output_scale")


class WeightScale(NamedTuple):
    """The scales of a weight: their tensor, the shape of its grid and of the block that each of them covers."""

    tensor: str
    grid: tuple[int, int]
    block: tuple[int, int]


class Weights:
    """The dequantised tensors of a checkpoint.

    Raises:
        UserError: config.json names a quantisation that is not read; when a tensor is checked or read also a type that
            is no float, 8 bits without scales, scales that do not fit, a number that is not finite.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], source: str) -> None:
        self._blocks = block_sizes(settings, source)
        self._int8 = multiplies_int8(settings, source)
        self.tensors = CheckpointTensors(folder)
        self._other: dict[str, str] = {}
        self._prefix = ("", "")
        self._inputs_first = False

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self.tensors

    def settle_names(self, prefixes: tuple[str, ...], witness: str, inputs_first: bool) -> None:
        """Reads names that begin with the first prefix under the one that this checkpoint has.

        Args:
            prefixes: The prefix of the names that are asked for, and others.
            witness: The name of a tensor that every checkpoint has.
            inputs_first: Whether matrices are [inputs, outputs].
        """
        stem = witness.removeprefix(prefixes[0])
        found = next((prefix for prefix in prefixes if prefix + stem in self.tensors), prefixes[0])
        self._prefix, self._inputs_first = (prefixes[0], found), inputs_first

    def stands_for(self, tensor: str, name: str) -> None:
        """From now on `tensor` is read wherever `name` is asked for."""
        self._other[name] = tensor

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor in the file."""
        return self.tensors.info(self._stored(name))

    def names(self, name: str) -> set[str]:
        """The tensor of this name in the file and those that are used together with it."""
        stored = self._stored(name)
        return {stored, *self._companions(stored)}

    def _stored(self, name: str) -> str:
        """The name in the file."""
        name, (first, found) = self._other.get(name, name), self._prefix
        return found + name.removeprefix(first) if name.startswith(first) else name

    def _companions(self, name: str) -> set[str]:
        """The tensors beside a weight that are used together with it, or needed for activations alone."""
        if not name.endswith(".weight") or (
            self.tensors.present(name) and self.tensors.info(name).dtype not in EIGHT_BITS
        ):
            return set()
        stem = name.removesuffix("weight")
        there = {stem + word for word in COMPANIONS if stem + word in self.tensors}
        if not there & {stem + word for word in SCALED}:
            return set()
        return there | {stem + word for word in CACHE if stem + word in self.tensors}

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Checks dtype and shape of a tensor and of its scales; reads no other values."""
        name = self._stored(name)
        found = self.tensors.info(name)
        if found.dtype not in FLOATS and found.dtype not in EIGHT_BITS:
            raise UserError(
                f"tensor {name} in {self.tensors.folder} holds {found.dtype} numbers, expected a float type; {PLAIN}"
            )
        shape = shape[::-1] if self._turned(name) else shape
        if found.shape != shape:
            raise UserError(
                f"tensor {name} is {found.shape}, config.json makes it {shape}; "
                "write the config.json that belongs to the weights"
            )
        if found.dtype not in FLOATS:
            self._scale(name)

    def read(self, name: str, index: Index, dtype: DTypeLike) -> np.ndarray:
        """A slice of one tensor, rounded to `dtype`."""
        name = self._stored(name)
        turned = self._turned(name)
        index = index[::-1] if turned else index
        values = self.tensors.read(name, index)
        if self.tensors.info(name).dtype not in FLOATS:
            values = self._multiplied(name, values.astype(np.float32), index)
        with np.errstate(over="ignore"):  # of a float64 beyond `dtype`; found below
            rounded = values.astype(dtype)
        if not np.isfinite(rounded).all():
            raise UserError(
                f"tensor {name} in {self.tensors.folder} has entries that are not finite numbers of type "
                f"{np.dtype(dtype).name}; fetch the checkpoint again"
            )
        return rounded.T if turned else rounded

    def _turned(self, name: str) -> bool:
        """Whether an 8-bit matrix is stored [outputs, inputs] though the family has [inputs, outputs]."""
        dtype = self.tensors.info(name).dtype
        if not self._inputs_first or dtype in FLOATS:
            return False
        if name.removesuffix("weight") + "SCB" in self.tensors:
            return True  # bitsandbytes makes a Linear of every Conv1D
        raise UserError(
            f"tensor {name} in {self.tensors.folder} holds {dtype} numbers without SCB beside it, and whether its rows "
            f"are inputs or outputs is unknown; {PLAIN}"
        )

    def _multiplied(self, name: str, values: np.ndarray, index: Index) -> np.ndarray:
        scale = self._scale(name)
        shape = self.tensors.info(name).shape
        rows, columns = (np.arange(n)[part] // size for n, part, size in zip(shape, index, scale.block, strict=True))
        place = np.ix_(rows, columns)
        stem = name.removesuffix("weight")
        if stem + "weight_zero_point" in self.tensors:
            values -= self._factors(stem + "weight_zero_point", scale.grid)[place]
        factors = self._factors(scale.tensor, scale.grid)
        return values * (factors / np.float32(127) if scale.tensor.endswith("SCB") else factors)[place]

    def _factors(self, tensor: str, grid: tuple[int, int]) -> np.ndarray:
        found = self.tensors.read(tensor)
        powers = found.dtype == np.uint8
        values = found.astype(np.float32)
        return (np.exp2(values - 127) if powers else values).reshape(grid)

    def _scale(self, name: str) -> WeightScale:
        """The scales of an 8-bit weight, with types and shapes checked."""
        found, stem = self.tensors.info(name), name.removesuffix("weight")
        where = f"tensor {name} in {self.tensors.folder}"
        beside = [word for word in SCALED if stem + word in self.tensors]
        if len(beside) != 1 or not name.endswith(".weight") or len(found.shape) != 2:
            what = f"{' and '.join(beside)} beside it" if beside else "no scales (SCB, weight_scale) beside it"
            raise UserError(f"{where} holds {found.dtype} numbers and has {what}, so their meaning is unknown; {PLAIN}")
        word = beside[0]
        if (found.dtype == "I8") != (word == "SCB") and not (found.dtype == "I8" and self._int8 and word[-3:] != "inv"):
            raise UserError(
                f"{where} holds {found.dtype} numbers beside {word}, a quantisation that is not read; {PLAIN}"
            )
        self._check_zero_point(stem, word, found.dtype)
        return self._grid(where, stem + word, found.shape)

    def _check_zero_point(self, stem: str, word: str, dtype: str) -> None:
        point, form = stem + "weight_zero_point", stem + "weight_format"
        if point in self.tensors:
            here, scales = self.tensors.info(point), self.tensors.info(stem + word)
            if dtype != "I8" or word != "weight_scale" or here.dtype != "I8" or here.shape != scales.shape:
                raise UserError(
                    f"tensor {point} {here.dtype} {here.shape} does not fit its scales {scales.shape}; {PLAIN}"
                )
        if form in self.tensors and (self.tensors.info(form).dtype != "U8" or np.any(self.tensors.read(form))):
            raise UserError(f"tensor {form} says another layout than rows (0), which is not read; {PLAIN}")

    def _grid(self, where: str, tensor: str, shape: tuple[int, ...]) -> WeightScale:
        rows, columns = shape
        scales = self.tensors.info(tensor)
        grid = scales.shape if len(scales.shape) == 2 else (prod(scales.shape), 1)
        kinds = {*FLOATS, "F8_E8M0", "U8"}
        if tensor.endswith("SCB"):
            fits = grid == (rows, 1) and scales.dtype in FLOATS
            blocks = [(1, columns)]
        else:
            # Blocks that config.json names may be cut off at the edges, so the sizes of others cannot be told from the
            # grid; without a name there is one scale, one per row, or one per group of a row.
            blocks = [b for b in self._blocks if grid == (-(-rows // b[0]), -(-columns // b[1]))]
            even = 0 not in grid and rows % grid[0] == 0 and columns % grid[1] == 0
            uniform = grid == (1, 1) or (grid[0] == rows and (grid[1] == 1 or len(scales.shape) == 2))
            if not blocks and even and uniform and not (self._blocks and tensor.endswith("_inv")):
                blocks = [(rows // grid[0], columns // grid[1])]
            fits = bool(blocks) and scales.dtype in kinds and len(scales.shape) <= 2
        if not fits:
            named = f" with blocks of {self._blocks[0]}" if self._blocks else ""
            raise UserError(
                f"{where} {shape} has scales {tensor} {scales.dtype} {scales.shape}, which do not fit it{named}; "
                f"{PLAIN}"
            )
        return WeightScale(tensor, (grid[0], grid[1]), blocks[0])
