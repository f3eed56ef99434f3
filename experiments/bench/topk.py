"""Every top-k method on a list of shapes, interleaved in one process: a table, and JSON rows with --json FILE.

    python experiments/bench/topk.py --json experiments/bench/topk.jsonl

`sparse` is what a router's threshold leaves (a few positive entries, the rest 0), `matmul` has the product that makes
the rows inside the same program (its own time is in the row `none`). Times are milliseconds; methods in turn, every
repeat, so that what else the machine does falls on all of them.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp

from jhsae import ops

SHAPES = ["4096x2048x32", "512x16384x32", "512x34816x64", "2048x2048x128", "131072x16x1", "256x65536x32"]
MATMUL_EMBED = 64


def inputs(kind: str, batch: int, n: int):
    """(arguments, the function of them that makes the rows)."""
    keys = jax.random.split(jax.random.key(0), 2)
    if kind == "matmul":
        x = jax.random.normal(keys[0], (batch, MATMUL_EMBED))
        weight = jax.random.normal(keys[1], (n, MATMUL_EMBED)) / MATMUL_EMBED**0.5
        return (x, weight), lambda x, w: jnp.where(x @ w.T >= 2.2, x @ w.T, 0.0)
    rows = jax.random.normal(keys[0], (batch, n))
    return (jnp.where(rows >= 2.2, rows, 0.0) if kind == "sparse" else rows,), lambda rows: rows


def program(method: Any, k: int, make):
    if method == "none":
        return jax.jit(lambda *a: jnp.max(make(*a), axis=-1))
    return jax.jit(lambda *a: ops.topk(make(*a), k, method))


def measure(kind: str, batch: int, n: int, k: int, methods: list[str], repeats: int) -> dict[str, list[float]]:
    arguments, make = inputs(kind, batch, n)
    programs = {method: program(method, k, make) for method in methods}
    for run in programs.values():
        jax.block_until_ready(run(*arguments))
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(repeats):
        for method, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            times[method].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BATCHxNxK")
    parser.add_argument("--kinds", nargs="+", default=["normal", "sparse", "matmul"])
    parser.add_argument("--methods", nargs="+", default=list(get_args(ops.Method)))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="a file to append one row per method, shape and kind to")
    args = parser.parse_args()
    print("| shape | kind |", " | ".join(args.methods), "|\n|---|---|" + "---|" * len(args.methods))
    for shape in args.shapes:
        batch, n, k = map(int, shape.split("x"))
        for kind in args.kinds:
            methods = args.methods + (["none"] if kind == "matmul" else [])
            before = os.getloadavg()[0]
            times = measure(kind, batch, n, k, methods, args.repeats)
            middle = {method: statistics.median(t) for method, t in times.items()}
            cells = [f"{middle[m]:.1f} [{min(times[m]):.1f}, {max(times[m]):.1f}]" for m in args.methods]
            print(f"| {shape} | {kind} |", " | ".join(cells), "|", flush=True)
            about = {"batch": batch, "n": n, "k": k, "kind": kind, "repeats": args.repeats}
            about |= {"load": [before, os.getloadavg()[0]], "jax": jax.__version__, "platform": jax.default_backend()}
            about |= {"device": jax.devices()[0].device_kind, "cpus": os.cpu_count()}
            rows = [
                about | {"method": m, "median_ms": middle[m], "min_ms": min(t), "max_ms": max(t)}
                for m, t in times.items()
            ]
            if args.json:
                with args.json.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
