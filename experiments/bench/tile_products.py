"""The products inside tiles on this machine: written out as sums, and as XLA's batched products, interleaved.

    python experiments/bench/tile_products.py [--embed 256] [--json FILE]

128 tiles of 16 rows and 64 tokens, 50 calls a round. The thin sides run beyond `tiles.THIN` and
`rows.WRITTEN_OUT`: this is what those limits were chosen from.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jhsae.bench.measurement import environment, interleave, load_average, write
from jhsae.ops import rows, tiles
from jhsae.ops.chunks import sized_for

TILES, ROWS, ATOMS, TOKENS, FEATURES, CALLS = 128, 16, 16, 64, 2048, 50
FORMS = {"written out": "cpu", "products": "tpu"}  # the form of that platform, run here


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def cases(embed: int) -> dict[str, tuple]:
    """What to multiply, by a name with its shape."""
    found: dict[str, tuple] = {}
    for sub in (1, 4, 8, 16, 32):
        found[f"over rows, {sub} x embed"] = tiles.over_rows, draw(TILES, ROWS, sub), draw(TILES, ROWS, embed)
        found[f"over rows, {ATOMS} x {sub}"] = tiles.over_rows, draw(TILES, ROWS, ATOMS), draw(TILES, ROWS, sub)
        found[f"over {sub} directions"] = tiles.over_sub, draw(TILES, ROWS, sub), draw(TILES, sub, embed)
    for k in (8, 32, 64, 128):
        indices = jnp.asarray(np.random.default_rng(1).integers(0, FEATURES, (TOKENS, k)), jnp.int32)
        found[f"{k} weighted rows"] = rows.weighted_rows, draw(TOKENS, k), indices, draw(FEATURES, embed)
    return found


def program(platform: str, function: Callable, *arguments: jax.Array) -> Callable[[], object]:
    """`CALLS` calls of the form that `platform` takes."""
    with sized_for(platform):
        # a function of its own: what is traced for one platform would be found again for the other
        compiled = jax.jit(lambda *a: function(*a)).lower(*arguments).compile()

    def call() -> None:
        jax.block_until_ready([compiled(*arguments) for _ in range(CALLS)][-1])

    return call


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embed", type=int, default=256, help="numbers of a row (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    words = parser.parse_args()
    tiles.THIN = rows.WRITTEN_OUT = 1 << 20  # everything is written out: the limits are what is in question
    before, found = load_average(), {}
    print(f"{'products over written out, median (least to most)':52}{'written out':>14}{'products':>12}")
    for name, (function, *arguments) in cases(words.embed).items():
        times = interleave({form: program(p, function, *arguments) for form, p in FORMS.items()}, 9, 20)
        ratio, each = (
            times.ratio("products", "written out"),
            [times.milliseconds(form).median / CALLS for form in FORMS],
        )
        print(
            f"{name:24}{ratio.median:8.2f} ({ratio.min:.2f} to {ratio.max:.2f})"
            + " " * 6
            + "{:9.3f} ms {:9.3f} ms".format(*each)
        )
        found[name] = {"ratio": asdict(ratio)} | {form: asdict(times.milliseconds(form)) for form in FORMS}
    write({"embed": words.embed, "calls": CALLS, "cases": found, "load_before": before, **environment()}, words.json)


if __name__ == "__main__":
    main()
