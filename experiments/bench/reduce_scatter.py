"""The reduce-scatter that XLA:TPU turns into an all-reduce: a program of one operation, compiled for slices of TPUs.

    pip install -e '.[tpu]'
    python experiments/bench/reduce_scatter.py [--json experiments/bench/reduce_scatter.jsonl]

Each program is ``jax.lax.psum_scatter`` of one float32 array, over one mesh axis after another, and nothing else; no
TPU is needed. Printed: the collectives that the compiler made of it, and what each chip sends by ring algorithms, in
arrays: of a reduce-scatter over g chips ``(g - 1) / g`` of its operand, of an all-reduce twice that. A fusion
``all-reduce-scatter`` is a reduce-scatter: its result is a part.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jhsae.files.bounded import to_json
from jhsae.files.folders import append_line
from jhsae.plan.topology import topology

MATRIX, STACK = (16_384, 9_216), (16_384, 4, 2_304)
CASES = [  # slice, sizes of the mesh axes, shape
    ("v5p:4x4x4", (64,), MATRIX),
    ("v5p:4x4x4", (64,), STACK),
    ("v5p:4x4x4", (16, 4), MATRIX),
    ("v5p:4x4x4", (16, 4), STACK),
    ("v5p:4x4x4", (4, 4, 4), MATRIX),
    ("v5p:4x4x4", (4, 4, 4), STACK),
    ("v5p:2x2x4", (16,), MATRIX),
    ("v6e:2x4", (8,), MATRIX),
    ("v6e:16x16", (256,), MATRIX),
    ("v6e:16x16", (16, 16), MATRIX),
]
COLLECTIVE = re.compile(r" (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(?:-start)?\(")
FUSED = re.compile(r"^%?(all-reduce-scatter[\w.\-]*) \(", re.MULTILINE)


def main() -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--json", type=Path, help="append one row per program")
    arguments = top.parse_args()
    for row in rows():
        made = ", ".join(f"{count} {kind}" for kind, count in row["made"].items())
        print(f"{row['slice']} {row['axes']} {row['shape']}: {made}; sends {row['sent']}", flush=True)
        if arguments.json:
            append_line(arguments.json, to_json(row))
    return 0


def rows() -> Iterator[dict[str, Any]]:
    for where, axes, shape in CASES:
        made = collectives(compiled(where, axes, shape))
        row = {"slice": where, "axes": list(axes), "shape": list(shape), "made": made, "sent": sent(axes, made)}
        yield row | {"jax": jax.__version__, "libtpu": version("libtpu")}


def compiled(where: str, axes: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """The compiled program, in words."""
    names = tuple(f"axis{i}" for i in range(len(axes)))
    mesh = Mesh(np.array(topology(where).devices).reshape(axes), names)

    def scattered(a: jax.Array) -> jax.Array:
        for name in names:
            a = jax.lax.psum_scatter(a, name, tiled=True)
        return a

    whole = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    one = jax.shard_map(scattered, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(names), check_vma=False)
    return jax.jit(one).lower(whole).compile().as_text() or ""


def collectives(text: str) -> dict[str, int]:
    """How many of each kind; those inside of fusions named all-reduce-scatter count as such."""
    found: dict[str, int] = {}
    inside = False
    for line in text.splitlines():
        if line and not line[0].isspace():
            inside = FUSED.match(line) is not None
        if kind := COLLECTIVE.search(line):
            name = "all-reduce-scatter" if inside else kind[1]
            found[name] = found.get(name, 0) + 1
    return found


def sent(axes: tuple[int, ...], made: dict[str, int]) -> float | None:
    """What each chip sends, in arrays; None where some operations are all-reduces and others not."""
    all_reduces = made.get("all-reduce", 0)
    if all_reduces not in (0, len(axes)):
        return None
    left = np.cumprod([1, *axes[:-1]])
    return float(sum((g - 1) / g / parts for g, parts in zip(axes, left, strict=True)) * (2 if all_reduces else 1))


if __name__ == "__main__":
    sys.exit(main())
