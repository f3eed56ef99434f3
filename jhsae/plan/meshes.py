"""Which meshes are worth a compilation, and which of those planned is best."""

from collections.abc import Sequence
from typing import Any

from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape

EXPERT_SIZES = (1, 4, 16)
"""Sharding experts over more chips than these leaves each with few, and every token's input goes to all of them."""


def mesh_shape(text: str, chips: int) -> MeshShape:
    """``data=16,expert=4``, either of them alone, or ``16x4``. Raises `UserError` where it is not the whole slice."""
    sizes = dict(zip(("data", "expert"), text.split("x"), strict=False)) if "=" not in text else {}
    sizes |= dict(part.partition("=")[::2] for part in text.split(",") if "=" in part)
    if not sizes or not sizes.keys() <= {"data", "expert"} or not all(n.isdigit() and int(n) for n in sizes.values()):
        raise UserError(f"--mesh is {text!r}, expected sizes such as data=16,expert=4")
    expert = int(sizes["expert"]) if "expert" in sizes else chips // int(sizes["data"])
    data = int(sizes["data"]) if "data" in sizes else chips // expert
    if data * expert != chips:
        raise UserError(
            f"--mesh {text} is {data * expert} chips, but the topology has {chips}; write sizes with that product, "
            f"such as {' or '.join(f'data={chips // e},expert={e}' for e in EXPERT_SIZES if chips % e == 0)}"
        )
    return MeshShape(data, expert)


def candidates(chips: int, batch: int, experts: int) -> list[MeshShape]:
    """Meshes of all the chips that share batch and experts evenly, experts over few chips first.

    Raises `UserError` when no mesh can.
    """
    sizes = [e for e in EXPERT_SIZES if chips % e == 0 and experts % e == 0 and batch % (chips // e) == 0]
    if not sizes:
        raise UserError(
            f"data.batch is {batch}, which no mesh of {chips} chips can share; write a multiple of {chips}, "
            f"or --tokens-per-chip {max(1, batch // chips)}"
        )
    return [MeshShape(chips // e, e) for e in sizes]


def recommended(plans: Sequence[dict[str, Any]]) -> int:
    """The number of the best plan: one that fits, then the fastest, then the one that needs least memory."""

    def badness(i: int) -> tuple[Any, ...]:
        plan = plans[i]
        return not plan["fits"], plan["step_seconds"] or 0.0, plan["bytes_per_chip"]

    return min(range(len(plans)), key=badness)
