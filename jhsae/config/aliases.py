"""Parts that moved: one table from the name that was published to where the part is now.

Saved runs, exported SAEs and configs name their parts by import path, and config hashes cover those names. A file may
move all the same: its old name goes into `MOVED`, every reader follows it, and hashes and comparisons are taken over
the published name, so that nothing that was saved or printed changes.
"""

from collections.abc import Mapping
from typing import Any

# Published name -> import path now, the oldest name first: a row per name, so that what moves again changes its rows.
# A module or package stands for every name in it: {"jhsae.revival": "jhsae.resampling"}
MOVED: dict[str, str] = {}


def current(name: str) -> str:
    """The import path, today, of a part that was published as `name`."""
    return _renamed(name, MOVED)


def published(name: str) -> str:
    """The name under which the part that `name` means was first published."""
    back: dict[str, str] = {}
    for old, new in MOVED.items():
        back.setdefault(new, old)
    return _renamed(current(name), back)


def with_published_names(value: Any) -> Any:
    """Plain data with the published name at every `_target_`."""
    if isinstance(value, Mapping):
        return {
            k: published(v) if k == "_target_" and isinstance(v, str) else with_published_names(v)
            for k, v in value.items()
        }
    return [with_published_names(v) for v in value] if isinstance(value, list) else value


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` with the longest row of `table` that it is, or begins with, replaced, unless it is replaced already."""
    rows = [old for old in table if _begins(name, old) and not (_begins(table[old], old) and _begins(name, table[old]))]
    longest = max(rows, key=len, default="")
    return table[longest] + name[len(longest) :] if rows else name


def _begins(name: str, start: str) -> bool:
    return name == start or name.startswith(start + ".")
