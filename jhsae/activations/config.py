"""The config of one harvest: frozen dataclasses that mirror the YAML of ``jhsae harvest``."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le, MinLen

from jhsae.config import Slot, Supplied
from jhsae.data.text import AbstractText
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape
from jhsae.ranges import Count, Natural, Seed, Words, ranged

Layers = Annotated[list[Natural], MinLen(1)]
LAYER = "{layer}"


@ranged
@dataclass(frozen=True)
class Source:
    """The language model and the places in it that are read."""

    path: Annotated[Words, "a folder, a Hugging Face name, or 'embedded'"]
    layer: Annotated[
        Natural | Annotated[list[Natural], MinLen(1)],
        "residual stream after so many blocks (0: the scaled embedding); or a list",
    ]
    dtype: Annotated[Literal["float32", "bfloat16"], "of the weights and of matrix products"] = "float32"

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer that is read."""
        return (self.layer,) if isinstance(self.layer, int) else tuple(self.layer)


@ranged
@dataclass(frozen=True)
class Harvest:
    """The config of one harvest."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset({"mesh"})

    out: Annotated[Words, "the store's folder; for several layers with {layer} in it, one store for each"]
    lm: Annotated[Source, "what is read"]
    text: Annotated[Slot, "the documents, a part of jhsae.data.text", Supplied(kind=AbstractText)]
    rows: Annotated[int, Ge(1), "activations to store at most; the text may hold fewer"]
    context: Annotated[int, Ge(2), Le(2**24), "tokens per sequence, BOS included where there is one"] = 128
    batch: Annotated[Count, "sequences per forward pass over all devices; rounded up so that they can share it"] = 32
    dtype: Annotated[Literal["bfloat16", "float32", "int8"], "of the stored activations"] = "bfloat16"
    seed: Annotated[Seed, "order of documents, sequences and rows"] = 0
    shuffle_rows: Annotated[Count, "rows (per layer) held in memory to be shuffled before they are written"] = 2**18
    mesh: Annotated[MeshShape, "devices that share the sequences and the model's weights"] = field(
        default_factory=MeshShape
    )

    def __post_init__(self) -> None:
        layers = self.lm.layers
        if len(set(layers)) < len(layers):
            raise UserError(f"lm.layer is {self.lm.layer}, expected one layer or a list of different ones")
        if len(layers) > 1 and LAYER not in self.out:
            raise UserError(
                f"lm.layer names {len(layers)} layers, but out={self.out} one store; write {LAYER} where the number "
                f"of the layer is to stand, e.g. out={self.out}-{LAYER}"
            )

    def stores(self) -> dict[int, str]:
        """The folder of each layer's store."""
        return {layer: self.out.replace(LAYER, str(layer)) for layer in self.lm.layers}
