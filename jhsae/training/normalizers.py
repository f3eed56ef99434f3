"""The normaliser of a run: one for a store, or one for each of several and for those of a target."""

from collections.abc import Mapping, Sequence
from typing import Any

from jhsae import config as cfg
from jhsae.config import Slot, Supplied
from jhsae.data import AbstractNormalizer, Aligned, Stores
from jhsae.data.source import AbstractSource
from jhsae.training.config import Train

NORMALIZER = Supplied(kind=AbstractNormalizer)


def normalizer_slot(config: Train, store: Stores | AbstractSource) -> Slot:
    """The slot that builds the normaliser of `store`, before it is fitted.

    Args:
        config: of the run; ``data.normalize`` is that of each store that is read, ``data.normalize_target`` of each
            that is written.
        store: what is read and written.

    Raises:
        UserError: a normaliser that scales every token by itself where that is not known.
    """
    if not isinstance(store, Aligned):
        return config.data.normalize
    widths = [[one.embed for one in stores] for stores in (store.inputs, store.targets)]
    return slot_of(config, *widths)


def slot_of(config: Train, read: Sequence[int], written: Sequence[int]) -> Slot:
    """`normalizer_slot` of stores of these widths; none are written where the target is what is read."""
    source = _side_by_side(config.data.normalize, read)
    if written:
        target = _side_by_side(config.data.normalize_target or config.data.normalize, written)
        widths = [sum(read), sum(written)]
        source = {"_target_": "jhsae.data.Between", "widths": widths, "source": source, "target": target}
    return cfg.checked(source, "data.normalize", NORMALIZER, trust=cfg.packages(config))


def _side_by_side(part: Mapping[str, Any], widths: Sequence[int]) -> dict[str, Any]:
    if len(widths) == 1:
        return dict(part)
    return {"_target_": "jhsae.data.SideBySide", "parts": [dict(part)] * len(widths), "widths": list(widths)}
