"""Facts about the array leaves of a module, read from its annotations.

``down: Float[Array, "experts sub embed"]`` declares the logical axes of a leaf; ``Annotated[..., Unit("embed")]`` marks
the axis along which it has norm 1, `NonNegative` its sign. The mesh, the constraint and the freezing all read this
one description.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import equinox as eqx
import jax
from jaxtyping import PyTree

from jhsae.errors import UserError


@dataclass(frozen=True)
class Leaf:
    """One array leaf of a module.

    Args:
        path: dotted, such as ``blocks.q``.
        axes: the names of its logical axes, in order.
        unit: the place of its unit-norm axis, counted from the end (negative); None without one.
        nonnegative: whether every update keeps it at 0 or above.
        levels: those of the forest that its rows lie in; None without one.
    """

    path: str
    axes: tuple[str, ...]
    unit: int | None
    nonnegative: bool = False
    levels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Unit:
    """Marks a field whose vectors along `axis` have norm 1 under the run's constraint."""

    axis: str


@dataclass(frozen=True)
class NonNegative:
    """Marks a field that every update keeps at 0 or above."""


@dataclass(frozen=True)
class Levels:
    """Marks a field whose rows lie in a forest, level by level: `field` of the same module holds the number of roots,
    then that of the slots below each row.
    """

    field: str


def describe(module: eqx.Module) -> PyTree[Leaf]:
    """A tree like `module` with a `Leaf` in the place of every array (or shape struct)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _leaf(module, path), module)


def matching(module: eqx.Module, patterns: list[str] | tuple[str, ...]) -> PyTree[bool]:
    """A tree of bools, True where a leaf's path matches one of the patterns.

    Args:
        module: the module, or its shapes.
        patterns: globs over dotted paths, such as ``atom_*``.

    Raises:
        UserError: a pattern matches no leaf.
    """
    paths = [leaf.path for leaf in jax.tree.leaves(describe(module))]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise UserError(
                f"pattern '{pattern}' matches no parameter; write one of {', '.join(paths)} or a glob such as 'atom_*'"
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(fnmatchcase(_dotted(path), p) for p in patterns), module
    )


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(jax.tree_util.keystr((key,)).strip(".[]'") for key in path)


def _leaf(module: eqx.Module, path: tuple[Any, ...]) -> Leaf:
    owner: Any = module
    for key in path[:-1]:
        owner = getattr(owner, key.name) if isinstance(key, jax.tree_util.GetAttrKey) else owner[key.idx]
    hint = get_type_hints(type(owner), include_extras=True)[path[-1].name]
    hint, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    array_hint = next((h for h in get_args(hint) if h is not type(None)), hint)
    axes = tuple(array_hint.dim_str.split())
    unit = next((note.axis for note in notes if isinstance(note, Unit)), None)
    nonnegative = any(isinstance(note, NonNegative) for note in notes)
    levels = next((getattr(owner, note.field) for note in notes if isinstance(note, Levels)), None)
    return Leaf(_dotted(path), axes, None if unit is None else axes.index(unit) - len(axes), nonnegative, levels)


def check_has(params: PyTree, names: tuple[str, ...], part: str, instead: str) -> None:
    """Raises `UserError` where parameters lack some of the leaves that a part is about.

    Args:
        params: of an SAE.
        names: of the leaves.
        part: that needs them.
        instead: what to write for such an SAE.
    """
    if missing := [name for name in names if not hasattr(params, name)]:
        raise UserError(f"{part} needs {' and '.join(missing)}, and {type(params).__name__} has none; write {instead}")
