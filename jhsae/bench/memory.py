"""What a compiled program needs, by the compiler's own account: arguments + outputs + temporaries - aliases.

An alias is an output that takes the place of a donated argument. It is the memory of one device.
"""

from dataclasses import asdict, dataclass

import jax
from jax.stages import Compiled

from jhsae.errors import UserError


@dataclass(frozen=True)
class Memory:
    """Bytes of one compiled program."""

    argument: int
    output: int
    temp: int
    alias: int

    @classmethod
    def of(cls, compiled: Compiled) -> "Memory":
        """The memory of what ``jax.jit(f).lower(...).compile()`` returns."""
        stats = compiled.memory_analysis()
        if stats is None:
            raise UserError(f"the compiler for {jax.default_backend()} does not say how much memory a program needs")
        return cls(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.alias_size_in_bytes,
        )

    @property
    def total(self) -> int:
        return self.argument + self.output + self.temp - self.alias

    def to_dict(self) -> dict[str, int]:
        """As JSON holds it."""
        return asdict(self) | {"total": self.total}
