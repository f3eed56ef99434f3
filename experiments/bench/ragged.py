"""`jax.lax.ragged_dot` against tiles, for encoding with selected experts: time and temporaries, forward and gradients.

    python experiments/bench/ragged.py --json experiments/bench/ragged.jsonl

Small shapes on purpose: where the backend has no grouped product, ragged_dot multiplies every pair with every expert.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jhsae import config as cfg
from jhsae.ops import ExpertEncoders, expert_major

EMBED, BATCH, K, SUB, ATOMS, REPEATS = 256, 256, 8, 4, 16, 5


def ragged(x, indices, encoders):
    """Pairs sorted by expert, two grouped products, and back into the order of the pairs."""
    down, atom_enc = encoders.down, encoders.atom_enc
    flat = indices.reshape(-1)
    order, sizes = jnp.argsort(flat), jnp.bincount(flat, length=down.shape[0])
    hidden = jax.lax.ragged_dot(x[order // K], down.swapaxes(1, 2), sizes)
    pre = jax.lax.ragged_dot(hidden, atom_enc.swapaxes(1, 2), sizes)
    return jnp.zeros_like(pre).at[order].set(pre).reshape(*indices.shape, -1)


def measure(name, op, experts):
    """One row: milliseconds of the op and its gradients, MiB of temporaries."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, down = jax.random.normal(keys[0], (BATCH, EMBED)), jax.random.normal(keys[1], (experts, SUB, EMBED))
    atom_enc = jax.random.normal(keys[2], (experts, ATOMS, SUB))
    indices = jax.lax.top_k(jax.random.normal(keys[3], (BATCH, experts)), K)[1]
    step = jax.jit(
        jax.value_and_grad(lambda down, enc: jnp.sum(op(x, indices, ExpertEncoders(down, enc)) ** 2), argnums=(0, 1))
    )
    compiled = step.lower(down, atom_enc).compile()
    value, _ = jax.block_until_ready(compiled(down, atom_enc))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(down, atom_enc))
        times.append(1e3 * (time.perf_counter() - start))
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return {"op": name, "experts": experts, "ms": statistics.median(times), "MiB": temporaries, "value": float(value)}


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--json", type=Path, help="append one row per op and number of experts")
    file = top.parse_args().json
    for experts in (64, 256):
        for name, op in (("tiles", expert_major.encode_atoms), ("ragged_dot", ragged)):
            row = measure(name, op, experts)
            cost = f"{row['ms']:8.1f} ms {row['MiB']:8.1f} MiB"
            print(f"{experts:4d} experts  {name:10s} {cost}  sum {row['value']:.6g}")
            if file:
                with file.open("a") as out:
                    out.write(json.dumps(row | cfg.provenance()) + "\n")


if __name__ == "__main__":
    main()
