"""Checks of the fields of a store's manifest."""

from typing import Any

from beartype.door import is_bearable

from jhsae.data.layout import ArrayLayout
from jhsae.data.storage import DTYPES
from jhsae.errors import UserError
from jhsae.files.bounded import MIB

LEAST = {
    "format": 1, "layer": 0, "documents": 0, "seed": 0, "rows": 1, "embed": 1, "sequences": 1, "context": 1,
    "shard_rows": 1, "chunk_rows": 1, "mean_norm": 0, "rms_norm": 0, "min_norm": 0, "max_norm": 0, "total_variance": 0,
}  # fmt: skip


def check_fields(raw: dict[str, Any], kinds: dict[str, Any], where: str) -> None:
    """Checks types, ranges and the consistency of fields."""

    def refuse(name: str, expected: str) -> UserError:
        return UserError(
            f"{where}: {name} is {str(raw[name])[:60]!r}, expected {expected}; the store is damaged, harvest it again"
        )

    for name, kind in kinds.items():
        value = raw[name]
        wanted: Any = {"mean": list}.get(name, float | int if kind is float else kind)
        if isinstance(value, bool) or not is_bearable(value, wanted):
            raise refuse(name, f"{getattr(wanted, '__name__', wanted)}")
        if name in LEAST and value < LEAST[name]:
            raise refuse(name, f"at least {LEAST[name]}")
    if raw["dtype"] not in DTYPES:
        raise refuse("dtype", f"one of {', '.join(DTYPES)}")
    if len(raw["mean"]) != raw["embed"] or not all(type(number) in (int, float) for number in raw["mean"]):
        raise refuse("mean", f"{raw['embed']} numbers, embed")
    if raw["shard_rows"] % raw["chunk_rows"]:
        raise refuse("shard_rows", f"a multiple of chunk_rows, {raw['chunk_rows']}")
    if not all(isinstance(number, str) for number in raw["versions"].values()):
        raise refuse("versions", "strings")
    if not raw["writers"] or not all(type(n) is int and n > 0 for n in raw["writers"]):
        raise refuse("writers", "numbers of at least 1")


def check_files(files: dict[str, Any], arrays: dict[str, ArrayLayout], zeros: bool, where: str) -> None:
    """The list of files must be that of the arrays; sizes are compared before anything of such a size is made.

    With `zeros`, chunks of zeros may be left out.
    """
    expected = sum(1 + layout.shards for layout in arrays.values())
    if len(files) != expected:
        raise UserError(
            f"{where} lists {len(files)} files, expected {expected}; the store is damaged, harvest it again"
        )
    for layout in arrays.values():
        for number, name in enumerate(layout.files(), -1):
            known = files.get(name)
            whole = layout.bytes_of(number) if number >= 0 else MIB
            right = (
                isinstance(known, dict)
                and known.keys() == {"bytes", "sha256"}
                and type(known["bytes"]) is int
                and isinstance(known["sha256"], str)
                and 0 <= known["bytes"] <= whole
                and (number < 0 or zeros or known["bytes"] == whole)
            )
            if not right:
                raise UserError(
                    f"{where}: files has {str(known)[:80]} for {name}, expected a sha256 and {whole} bytes; the store "
                    "is damaged, harvest it again"
                )
