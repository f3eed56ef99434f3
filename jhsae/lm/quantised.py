"""Quantisation settings of config.json; unsupported ones are refused by name."""

from typing import Any

from jhsae.errors import UserError

PLAIN = "write a checkpoint in bfloat16 or float32, such as transformers saves after model.dequantize()"
READ = "bitsandbytes (8-bit), fp8, fbgemm_fp8, compressed-tensors (8-bit, not packed)"
FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "dense")


def quantisation(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """The quantisation settings of config.json; empty where it has none."""
    found = settings.get("quantization_config") or settings.get("compression_config") or {}
    if not isinstance(found, dict):
        raise UserError(f"{source}: quantization_config is {str(found)[:80]!r}, expected an object; {PLAIN}")
    return found


def block_sizes(settings: dict[str, Any], source: str) -> list[tuple[int, int]]:
    """Block sizes in config.json: one for all weights (fp8), or one per group (compressed-tensors)."""
    about = quantisation(settings, source)
    found = [about.get("weight_block_size")]
    for group in _groups(about, source):
        found.append(group.get("block_structure"))
    named = [size for size in found if size is not None]
    for size in named:
        if not isinstance(size, list) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
            raise UserError(f"{source}: a block of weights is {str(size)[:80]}, expected two whole numbers; {PLAIN}")
    return [(size[0], size[1]) for size in named]


def multiplies_int8(settings: dict[str, Any], source: str) -> bool:
    """Refuses an unsupported quantisation; returns whether int8 weights with weight_scale are expected."""
    about = quantisation(settings, source)
    if not about:
        return False
    four, eight = (about.get(key) for key in ("load_in_4bit", "load_in_8bit"))
    name = str(about.get("quant_method", "bitsandbytes" if four or eight else "unknown"))[:80]
    said = f"{source}: the weights are quantised by {name}"
    if name == "bitsandbytes":
        if four or not eight:
            raise UserError(f"{said} in 4 bits, which is not read; {PLAIN}")
    elif name == "compressed-tensors":
        _check_compressed(about, said, source)
    elif name not in ("fp8", "fbgemm_fp8"):
        raise UserError(f"{said}, which is not read (read: {READ}); {PLAIN}")
    return name == "compressed-tensors"


def _check_compressed(about: dict[str, Any], said: str, source: str) -> None:
    groups = _groups(about, source)
    formats = [about.get("format"), *(group.get("format") for group in groups)]
    for found in formats:
        if found is not None and found not in FORMATS:
            raise UserError(
                f"{said} in the format {str(found)[:80]}, which is not read (read: {', '.join(FORMATS)}); {PLAIN}"
            )
    if any(group.get("num_bits", 8) != 8 for group in groups):
        raise UserError(f"{said} in other than 8 bits, which is not read; {PLAIN}")
    sparse = about.get("sparsity_config") or {}
    if about.get("transform_config") or (isinstance(sparse, dict) and sparse.get("format", "dense") != "dense"):
        raise UserError(f"{said} with transforms or sparse storage, which is not read; {PLAIN}")


def _groups(about: dict[str, Any], source: str) -> list[dict[str, Any]]:
    """The weight settings of each group of compressed-tensors, with the format of the group."""
    groups = about.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise UserError(f"{source}: config_groups is not an object of groups; write the config.json of the checkpoint")
    found = []
    for group in groups.values():
        weights = group.get("weights") or {}
        if not isinstance(weights, dict):
            raise UserError(f"{source}: the weights of a group are {str(weights)[:80]}, expected an object")
        found.append(weights | ({"format": group["format"]} if group.get("format") else {}))
    return found
