"""How fast a group of chips exchanges: which links of the torus, or which network between slices, it uses.

A group that spans an axis of the slice sends over the two links of that axis where the axis closes to a ring, over one
where it is a line; with every second chip of the axis only half of that is its own. Groups over several axes use the
links of all. A group with chips of several slices goes over the data-centre network.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jhsae.errors import UserError
from jhsae.plan.chips import Chip
from jhsae.plan.collectives import Collective


class Places(NamedTuple):
    """Where the chips of a mesh stand, in the order of the mesh."""

    coordinates: Int[np.ndarray, "chips axes"]
    slices: Int[np.ndarray, " chips"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of a slice."""
        return tuple(int(n) + 1 for n in self.coordinates.max(axis=0))


def seconds(collective: Collective, chip: Chip, places: Places) -> float:
    """Of one run: bytes that a chip sends over what it can send; no latency."""
    return collective.sent / rate(collective, chip, places)


def on_dcn(collective: Collective, places: Places) -> bool:
    """Whether it crosses slices."""
    return collective.between or len({int(places.slices[i]) for i in collective.groups[0]}) > 1


def rate(collective: Collective, chip: Chip, places: Places) -> float:
    """Bytes/s that one chip of the group can send. Raises `UserError` where no public page says it."""
    if on_dcn(collective, places):
        if chip.dcn is None:
            raise UserError(f"the network between slices of {chip.name} is not in jhsae.plan.chips; plan one slice")
        return chip.dcn
    if collective.kind == "collective-permute":
        return chip.ici
    members = places.coordinates[collective.groups[0]]
    links = sum(_links(np.unique(members[:, axis]), size, chip) for axis, size in enumerate(places.shape))
    return chip.ici * max(links, 1 / max(places.shape))


def _links(positions: Int[np.ndarray, " positions"], size: int, chip: Chip) -> float:
    """Links of one axis that belong to a group at these positions of it."""
    if len(positions) < 2:
        return 0.0
    stride = int(np.diff(positions).min())
    ring = len(positions) * stride >= size and size % chip.wraps == 0
    return (2 if ring else 1) / stride
