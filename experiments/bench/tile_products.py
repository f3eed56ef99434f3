"""The products inside tiles on this machine: written out as sums, and as XLA's batched products, interleaved.

    python experiments/bench/tile_products.py [--embed 256]

128 tiles of 16 rows, 4 directions, 16 atoms; 64 tokens of 32 rows. Prints the median and the spread in microseconds.
"""

from argparse import ArgumentParser
from statistics import median
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np

from jhsae.ops.chunks import sized_for
from jhsae.ops.rows import weighted_rows
from jhsae.ops.tile_products import over_rows, over_sub

TILES, ROWS, SUB, ATOMS, ROUNDS, CALLS = 128, 16, 4, 16, 15, 50


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embed", type=int, default=256, help="numbers of a row (%(default)s)")
    embed = parser.parse_args().embed
    indices = jnp.asarray(np.random.default_rng(1).integers(0, 2048, (64, 32)), jnp.int32)
    cases = {
        "directions x embed, over rows": (over_rows, draw(TILES, ROWS, SUB), draw(TILES, ROWS, embed)),
        "atoms x directions, over rows": (over_rows, draw(TILES, ROWS, ATOMS), draw(TILES, ROWS, SUB)),
        "one x embed, over rows": (over_rows, draw(TILES, ROWS, 1), draw(TILES, ROWS, embed)),
        "rows x embed, over directions": (over_sub, draw(TILES, ROWS, SUB), draw(TILES, SUB, embed)),
        "weighted rows of a matrix": (weighted_rows, draw(64, 32), indices, draw(2048, embed)),
    }
    print(f"{'median (least to most), microseconds':36}{'written out':>24}{'products':>24}")
    for name, (function, *arguments) in cases.items():
        programs = {}
        for form, platform in (("written out", "cpu"), ("products", "tpu")):  # the sizes of that platform, run here
            with sized_for(platform):
                # a function of its own: what is traced for one platform would be found again for the other
                programs[form] = jax.jit(lambda *a, f=function: f(*a)).lower(*arguments).compile()
        times: dict[str, list[float]] = {form: [] for form in programs}
        for _ in range(ROUNDS):
            for form, program in programs.items():
                began = perf_counter()
                for _ in range(CALLS):
                    out = program(*arguments)
                jax.block_until_ready(out)
                times[form].append(1e6 * (perf_counter() - began) / CALLS)
        words = [f"{median(t):.0f} ({min(t):.0f} to {max(t):.0f})" for t in times.values()]
        print(f"{name:36}" + "".join(f"{word:>24}" for word in words))


if __name__ == "__main__":
    main()
