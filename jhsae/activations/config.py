"""The config of one harvest: frozen dataclasses that mirror the YAML of ``jhsae harvest``."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, MinLen

from jhsae.config import Slot, Supplied
from jhsae.data import Hook
from jhsae.data.hook import RESIDUAL
from jhsae.data.text import AbstractText
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape
from jhsae.ranges import Count, Natural, Seed, Words, ranged

LAYER, HOOK = "{layer}", "{hook}"


@ranged
@dataclass(frozen=True)
class Source:
    """The language model and the places in it that are read."""

    path: Annotated[Words, "a folder, a Hugging Face name, or 'embedded'"]
    layer: Annotated[
        Natural | Annotated[list[Natural], MinLen(1)] | None,
        "residual stream after so many blocks (0: the scaled embedding); or a list",
    ] = None
    dtype: Annotated[Literal["float32", "bfloat16"], "of the weights and of matrix products"] = "float32"
    hooks: Annotated[
        Annotated[list[Words], MinLen(1)] | None,
        "instead of layer, places such as mlp_in.2, mlp_out.2, attn_out.2 or resid.2, all from one pass",
    ] = None

    def __post_init__(self) -> None:
        if (self.layer is None) == (self.hooks is None):
            given = "both" if self.layer is not None else "neither"
            raise UserError(f"names {given} of layer and hooks; write lm.layer=2, or lm.hooks=[mlp_in.2,mlp_out.2]")
        if len(set(self.places)) < len(self.places):
            if self.hooks is not None:
                raise UserError(f"lm.hooks is {self.hooks}, expected different ones")
            raise UserError(f"lm.layer is {self.layer}, expected one layer or a list of different ones")

    @property
    def places(self) -> tuple[Hook, ...]:
        """Every place that is read."""
        if self.hooks is not None:
            return tuple(Hook.parse(text) for text in self.hooks)
        layers = [self.layer] if isinstance(self.layer, int) else self.layer or []
        return tuple(Hook(RESIDUAL, layer) for layer in layers)

    @property
    def blocks(self) -> int:
        """How many blocks run."""
        return max(place.blocks for place in self.places)


@ranged
@dataclass(frozen=True)
class Harvest:
    """The config of one harvest."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset({"mesh"})
    LATER: ClassVar[dict[str, Any]] = {"lm.hooks": None}

    out: Annotated[
        Words, "the store's folder; for several layers with {layer} in it, for hooks with {hook}, one store for each"
    ]
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
        places = self.lm.places
        if self.lm.hooks is not None and len(places) > 1 and HOOK not in self.out:
            raise UserError(
                f"lm.hooks names {len(places)} hooks, but out={self.out} one store; write {HOOK} where the name of the "
                f"hook is to stand, e.g. out={self.out}-{HOOK}"
            )
        if self.lm.hooks is None and len(places) > 1 and LAYER not in self.out:
            raise UserError(
                f"lm.layer names {len(places)} layers, but out={self.out} one store; write {LAYER} where the number "
                f"of the layer is to stand, e.g. out={self.out}-{LAYER}"
            )

    def stores(self) -> dict[Hook, str]:
        """The folder of each place's store."""
        word = LAYER if self.lm.hooks is None else HOOK
        return {p: self.out.replace(word, str(p.block if self.lm.hooks is None else p)) for p in self.lm.places}
