"""Configurations: frozen dataclasses read from YAML, strictly, and the parts that their slots name.

A config class documents its keys in their annotations and leaves a swappable part to a slot::

    @dataclass(frozen=True)
    class Train:
        steps: Annotated[int, "optimizer steps"]
        sae: Annotated[Slot, "the autoencoder", Supplied("key", "embed", kind=AbstractSAE)]
        out: Annotated[str, "run folder, must not exist"] = "runs/train"
        UNHASHED: ClassVar[frozenset[str]] = frozenset({"log_every"})

``load(Train, "train.yaml", ["steps=100"])`` checks every key and every slot before anything is built.
"""

from jhsae.config.aliases import published as published
from jhsae.config.check import CheckedSlot as CheckedSlot
from jhsae.config.describe import slot_of as slot_of
from jhsae.config.parts import build as build
from jhsae.config.parts import checked as checked
from jhsae.config.reading import find as find
from jhsae.config.reading import is_file as is_file
from jhsae.config.reading import load as load
from jhsae.config.reading import plain as plain
from jhsae.config.reading import read as read
from jhsae.config.record import config_hash as config_hash
from jhsae.config.record import diff as diff
from jhsae.config.record import packages as packages
from jhsae.config.record import provenance as provenance
from jhsae.config.record import to_dict as to_dict
from jhsae.config.record import to_yaml as to_yaml
from jhsae.config.record import write as write
from jhsae.config.schema import Slot as Slot
from jhsae.config.schema import Supplied as Supplied
from jhsae.config.wording import describe_keys as describe_keys
