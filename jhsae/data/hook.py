"""Names of the places in a language model whose activations are stored: ``mlp_in.2``, ``resid.0``.

The number counts blocks from 0; ``resid.l``, the input of block l, is the residual stream after l blocks (layer l).
What the names mean is said in `jhsae.lm.base`.
"""

from typing import Any, NamedTuple

from jhsae.errors import UserError

RESIDUAL = "resid"
HOOKS = (RESIDUAL, "attn_out", "mlp_normalized", "mlp_in", "mlp_out")  # in the order of a pass


class Hook(NamedTuple):
    """A place in a language model.

    Args:
        name: One of `HOOKS`.
        block: The number of the block.
    """

    name: str
    block: int

    @classmethod
    def parse(cls, text: str) -> "Hook":
        """Reads ``name.block``.

        Raises:
            UserError: Another form, or an unknown name.
        """
        name, _, block = text.rpartition(".")
        if name not in HOOKS or not block.isascii() or not block.isdecimal() or len(block) > 6:
            known = ", ".join(HOOKS)
            raise UserError(f"a hook is {text[:60]!r}, expected one of {known} and a block, such as mlp_in.2")
        return cls(name, int(block))

    def __str__(self) -> str:
        return f"{self.name}.{self.block}"

    @property
    def words(self) -> str:
        """As it is written in sentences; a residual stream by its layer."""
        return f"layer {self.block}" if self.name == RESIDUAL else str(self)

    @property
    def blocks(self) -> int:
        """How many blocks of the model run until it is known."""
        return self.block + (self.name != RESIDUAL)

    @classmethod
    def of(cls, about: Any) -> "Hook":
        """That of a manifest, which has a ``layer`` and, where it is no residual stream, a ``hook``."""
        return cls(about.hook, about.layer)
