"""Names of latents: ``f7`` of a flat SAE; of a hierarchical one ``e12``, its atom ``e12/a3``, and ``e12/a3/a1`` below.

They are those of the pages of `jhsae browse`. ``e12/*`` means a latent and all that is below it.
"""

import re

from jhsae.errors import UserError
from jhsae.features.contexts import children
from jhsae.sae import AbstractSAE, Forest

SHAPE = re.compile(r"[ef][0-9]{1,9}(/a[0-9]{1,9})*")


def label(feature: int, tree: Forest | None) -> str:
    """The name of a feature.

    Args:
        feature: a row of the dictionary.
        tree: ``sae.tree``.
    """
    if tree is None:
        return f"f{feature}"
    parent = int(tree.parents[feature])
    return f"e{feature}" if parent < 0 else f"{label(parent, tree)}/a{feature - children(tree, parent).start}"


def rows_named(name: str | int, sae: AbstractSAE) -> list[int]:
    """The rows of the dictionary that a name means: one, or with ``/*`` also all below it, parents first.

    Args:
        name: as above, or the number of a row.
        sae: the SAE whose latents are meant.

    Raises:
        UserError: no name of a latent, one that this SAE does not have, or an empty slot of its forest.
    """
    text = str(name)
    whole = text.endswith("/*")
    row = _row(text.removesuffix("/*"), sae)
    if not bool(sae.occupied[row]):
        raise UserError(f"latent is {text!r}, whose slot of the forest is empty; write one that holds a row")
    found = [row]
    if whole and sae.tree is not None:
        for parent in found:  # grows while it is read: level by level
            found.extend(children(sae.tree, parent))
    return [one for one in found if bool(sae.occupied[one])]


def _row(text: str, sae: AbstractSAE) -> int:
    tree = sae.tree
    last = sae.features - 1
    if text.isascii() and text.isdigit() and len(text) < 10:
        return _within(int(text), range(sae.features), text, f"0 to {last}")
    if not SHAPE.fullmatch(text):
        some = f"f0 to f{last}" if tree is None else "a name such as e0 or e0/a0"
        raise UserError(f"latent is {text[:80]!r}, expected {some}, or the number of a row of the dictionary")
    first, *below = text.split("/")
    if (first[0] == "f") != (tree is None):
        kind, instead = ("flat", f"f0 to f{last}") if tree is None else ("hierarchical", "e0, or e0/a0 for an atom")
        raise UserError(f"latent is {text!r}, but this SAE is {kind}; write {instead}")
    if tree is None:
        if below:
            raise UserError(f"latent is {text!r}, but this SAE is flat; write f0 to f{last}")
        return _within(int(first[1:]), range(sae.features), text, f"f0 to f{last}")
    row, path = _within(int(first[1:]), range(tree.roots), text, f"e0 to e{tree.roots - 1}"), first
    for part in below:
        slots = children(tree, row)
        if not slots:
            raise UserError(f"latent is {text!r}, but nothing is below {path}; write {path}")
        row = _within(slots.start + int(part[1:]), slots, text, f"{path}/a0 to {path}/a{len(slots) - 1}")
        path += f"/{part}"
    return row


def _within(row: int, rows: range, text: str, known: str) -> int:
    if row not in rows:
        raise UserError(f"latent is {text!r}, but this SAE has {known}; write one of those")
    return row
