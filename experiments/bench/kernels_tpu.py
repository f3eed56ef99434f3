"""Memory and cost of each kernel by the TPU compiler, next to the same program without it; no TPU is needed.

    pip install -e '.[tpu]'
    python experiments/bench/kernels_tpu.py [--chip v5p] [--kernel topk] [--json FILE]

Compiles ahead of time for one chip, from shapes alone. A kernel that Mosaic refuses is an error here. The compiler does
not look into a kernel: its FLOPs and seconds are those of what stands around it, so `optimal_seconds` compares only
programs without kernels; memory is whole. Exit code 1: a program does not compile.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.folders import append_line
from jhsae.ops import expert_major
from jhsae.ops.chunks import sized_for
from jhsae.ops.pallas import experts_tpu, topk_tpu
from jhsae.plan.topology import topology, use_libtpu

TOPOLOGIES = {"v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # the smallest that libtpu names; one chip of it is used
PARTS = ("argument", "output", "temp")
COST = ("flops", "bytes accessed", "optimal_seconds")


class Case(NamedTuple):
    """Programs of one meaning, the kernel first, and the arguments that each is compiled for."""

    name: str
    programs: Mapping[str, Callable[..., Any]]
    shapes: list[tuple[jax.ShapeDtypeStruct, ...]]


def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def gradients(op: Callable[..., Any]) -> Callable[..., Any]:
    """The backward pass of an expert operation; what it keeps of the forward pass is computed in the same program."""
    return lambda g, x, *rest: jax.vjp(lambda x, *w: op(x, rest[0], *w), x, *rest[1:])[1](g)


def on_arrays(module: Any, op: str) -> Callable[..., Any]:
    """The operation as a function of arrays, of which gradients are taken."""

    def encode(x: Any, indices: Any, down: Any, atom_enc: Any) -> Any:
        return module.encode_atoms(x, indices, ops.ExpertEncoders(down, atom_enc))

    def decode(values: Any, indices: Any, up: Any, atom_dec: Any) -> Any:
        parents = Codes(jnp.ones(indices.shape), indices, len(up))
        codes = TreeCodes(parents, Codes(values, None, atom_dec.shape[1]))
        return module.decode_atoms(codes, ops.Decoder(up[:, 0], up, atom_dec))

    return {"encode_atoms": encode, "decode_atoms": decode}[op]


def experts(op: str, batch: int, k: int, embed: int, number: int, sub: int, atoms: int) -> Iterator[Case]:
    """Forward and gradients of an operation of `expert_major`."""
    sides = [shape(jnp.float32, batch, embed), shape(jnp.float32, batch, k, atoms)]
    x, g = sides if op == "encode_atoms" else sides[::-1]
    matrices = (shape(jnp.float32, number, sub, embed), shape(jnp.float32, number, atoms, sub))
    arguments = (x, shape(jnp.int32, batch, k), *matrices)
    programs = {"kernel": on_arrays(experts_tpu, op), "tiles": on_arrays(expert_major, op)}
    yield Case(op, programs, [arguments])
    yield Case(f"{op}_gradients", {name: gradients(program) for name, program in programs.items()}, [(g, *arguments)])


EXPERTS = (4_064, 32, 2_304, 2_048, 4, 16)
CASES = [
    Case(
        "topk",
        {"kernel": partial(topk_tpu, k=32)} | {m: partial(ops.topk, k=32, method=m) for m in ("lax", "blocked")},
        [
            (shape(dtype, *sizes),)
            for sizes in ((32_512, 16_384), (8_128, 65_536))
            for dtype in (jnp.bfloat16, jnp.float32)
        ],
    ),
    *experts("encode_atoms", *EXPERTS),
    *experts("decode_atoms", *EXPERTS),
]


def main() -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--chip", nargs="+", default=list(TOPOLOGIES), choices=TOPOLOGIES)
    top.add_argument("--kernel", nargs="+", choices=[case.name for case in CASES], help="the default is all")
    top.add_argument("--json", type=Path, help="append one row per program")
    arguments = top.parse_args()
    try:
        use_libtpu()
    except UserError as error:
        print(f"kernels_tpu: error: {error}", file=sys.stderr)
        return 2
    compiled = True
    for row in rows(arguments):
        compiled &= "error" not in row
        print(line(row), flush=True)
        if arguments.json:
            append_line(arguments.json, to_json(row))
    return 0 if compiled else 1


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per chip, kernel, shape and program."""
    for chip in arguments.chip:
        device: Any = topology(TOPOLOGIES[chip]).devices[0]
        for case in CASES:
            if arguments.kernel and case.name not in arguments.kernel:
                continue
            for shapes in case.shapes:
                sizes = " ".join(f"{a.dtype.name}[{','.join(map(str, a.shape))}]" for a in shapes)
                placed = [a.update(sharding=SingleDeviceSharding(device)) for a in shapes]
                for name, program in case.programs.items():
                    found = {"chip": chip, "kernel": case.name, "shapes": sizes, "program": name}
                    yield found | measured(program, placed) | {"libtpu": version("libtpu"), "jax": jax.__version__}


def measured(program: Callable[..., Any], shapes: list[jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """GiB, the compiler's estimate of the cost, and the seconds it took; or why it does not compile."""
    start = time.perf_counter()
    try:
        with sized_for("tpu"):
            compiled = jax.jit(program).lower(*shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error)}
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return {
        **{f"{part}_gib": getattr(memory, f"{part}_size_in_bytes") / 2**30 for part in PARTS},
        **{key: cost.get(key) for key in COST},
        "compile_seconds": time.perf_counter() - start,
    }


def line(row: dict[str, Any]) -> str:
    head = f"{row['chip']} {row['kernel']} {row['shapes']} {row['program']:8}"
    if "error" in row:
        return f"{head} does not compile: {row['error'].splitlines()[0]}"
    memory = ", ".join(f"{part} {row[f'{part}_gib']:.3f}" for part in PARTS)
    cost = ", ".join(f"{key} {'none' if row[key] is None else f'{row[key]:.4g}'}" for key in COST)
    return f"{head} GiB: {memory}; {cost}; compiled in {row['compile_seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
