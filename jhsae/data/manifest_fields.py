"""Checks of the fields of a store's manifest."""

from typing import Any

from jhsae.data.hook import HOOKS
from jhsae.data.layout import ArrayLayout
from jhsae.data.storage import DTYPES
from jhsae.errors import UserError
from jhsae.files.bounded import MIB
from jhsae.files.forms import NUMBER, OBJECT, TEXT, Each, at_least, brief, check, real

DAMAGED = "; the store is damaged, harvest it again"
ROWS = at_least(1)
INDEX = at_least(0)
NORM = real()
FORM = {
    "format": ROWS, "model": TEXT, "layer": INDEX, "tokenizer": OBJECT, "dataset": OBJECT, "documents": INDEX,
    "seed": INDEX, "config": OBJECT, "config_hash": TEXT, "dtype": TEXT, "rows": ROWS, "embed": ROWS,
    "sequences": ROWS, "context": ROWS, "shard_rows": ROWS, "chunk_rows": ROWS, "writers": [ROWS], "mean": [NUMBER],
    "mean_norm": NORM, "rms_norm": NORM, "min_norm": NORM, "max_norm": NORM, "total_variance": NORM,
    "versions": Each(TEXT), "files": Each(OBJECT), "hook?": TEXT,
}  # fmt: skip


def check_fields(raw: dict[str, Any], where: str) -> None:
    """Checks types, ranges and the consistency of fields."""
    check(raw, FORM, where, mend=DAMAGED)

    def refuse(name: str, expected: str) -> UserError:
        return UserError(f"{where}: {name} is {brief(raw[name])}, expected {expected}{DAMAGED}")

    if raw["dtype"] not in DTYPES:
        raise refuse("dtype", f"one of {', '.join(DTYPES)}")
    if raw.get("hook", HOOKS[0]) not in HOOKS:
        raise refuse("hook", f"one of {', '.join(HOOKS)}")
    if len(raw["mean"]) != raw["embed"]:
        raise refuse("mean", f"{raw['embed']} values, embed")
    if raw["shard_rows"] % raw["chunk_rows"]:
        raise refuse("shard_rows", f"a multiple of chunk_rows, {raw['chunk_rows']}")
    if not raw["writers"]:
        raise refuse("writers", "at least one entry")


def check_files(files: dict[str, Any], arrays: dict[str, ArrayLayout], zeros: bool, where: str) -> None:
    """The list of files must be that of the arrays; sizes are compared before anything of such a size is made.

    With `zeros`, chunks of zeros may be left out.
    """
    expected = sum(1 + layout.shards for layout in arrays.values())
    if len(files) != expected:
        raise UserError(f"{where} lists {len(files)} files, expected {expected}{DAMAGED}")
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
                    f"{where}: files has {str(known)[:80]} for {name}, expected a sha256 and {whole} bytes{DAMAGED}"
                )
