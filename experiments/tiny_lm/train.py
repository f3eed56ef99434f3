"""Train the embedded language model on the arrays of prepare.py; resumes from --out if a state is there.

Every row is <bos> and 127 tokens of the stream of documents, separated by <eos> and reshuffled every epoch. A
share of the input tokens is replaced by <unk> (the targets are not), the only regularisation beside weight decay.
Muon for the matrices of the blocks, Adam for embedding and norms; learning rate: warmup, constant, linear to zero.
The exported weights are an exponential average. curve.jsonl: nats per token, training since the last row and
held out (of the average).
"""

import argparse
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rows import CONTEXT, batches, rows

from jhsae.lm import Blocks, Gemma2, Gemma2Config, cross_entropy

CONFIG = Gemma2Config(
    vocab=8192, embed=256, hidden=1024, heads=4, kv_heads=2, head_dim=64, window=64,
    sliding=(True, False, True, False), query_pre_attn_scalar=64,
)  # fmt: skip
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def initial(key: jax.Array) -> Gemma2:
    c, layers = CONFIG, len(CONFIG.sliding)
    shapes = {
        "q": (c.heads * c.head_dim, c.embed), "k": (c.kv_heads * c.head_dim, c.embed),
        "v": (c.kv_heads * c.head_dim, c.embed), "o": (c.embed, c.heads * c.head_dim),
        "gate": (c.hidden, c.embed), "up": (c.hidden, c.embed), "down": (c.embed, c.hidden),
    }  # fmt: skip
    keys = jax.random.split(key, 1 + len(shapes))
    matrices = {
        name: jax.random.normal(k, (layers, *shape)) * shape[1] ** -0.5
        for k, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
    }
    zero, half = jnp.zeros((layers, c.embed)), jnp.full((layers, c.embed), -0.5)
    blocks = Blocks(**matrices, attention_in=zero, attention_out=half, mlp_in=zero, mlp_out=half)
    embedding = jax.random.normal(keys[0], (c.vocab, c.embed)) * c.embed**-0.5
    return Gemma2(embedding, blocks, jnp.zeros(c.embed), c, matmul_dtype="bfloat16", unroll=True)


def optimizer(args: argparse.Namespace) -> optax.GradientTransformation:
    def schedule(peak: float):
        down = optax.linear_schedule(peak, 0.0, args.decay)
        parts = [optax.linear_schedule(0.0, peak, args.warmup), optax.constant_schedule(peak), down]
        return optax.join_schedules(parts, [args.warmup, args.steps - args.decay])

    def dimensions(model: Gemma2):
        none = jax.tree.map(lambda _: None, model)
        spec = optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1)
        return eqx.tree_at(
            lambda m: [getattr(m.blocks, n) for n in MATRICES],
            none,
            [spec] * len(MATRICES),
            is_leaf=lambda x: x is None,
        )

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(args.lr), adam_learning_rate=schedule(args.adam_lr), adam_b2=0.98,
            weight_decay=args.weight_decay, muon_weight_dimension_numbers=dimensions,
        ),
    )  # fmt: skip


class State(eqx.Module):
    model: Gemma2
    average: Gemma2
    opt_state: optax.OptState
    step: jax.Array


@eqx.filter_jit(donate="all")
def train_step(state: State, inputs, targets, update, averaging: float):
    def loss(model):
        return jnp.mean(cross_entropy(model(inputs), targets))

    value, grads = eqx.filter_value_and_grad(loss)(state.model)
    updates, opt_state = update(grads, state.opt_state, state.model)
    model = optax.apply_updates(state.model, updates)
    keep = jnp.minimum(averaging, state.step / (state.step + 10.0))
    average = optax.incremental_update(model, state.average, 1 - keep)
    return State(model, average, opt_state, state.step + 1), value


@eqx.filter_jit
def batch_loss(model: Gemma2, ids):
    return jnp.mean(cross_entropy(model(ids), ids), axis=1)


def evaluate(model: Gemma2, ids: np.ndarray) -> float:
    """Mean nats per token; a last part-batch is padded with repeats that do not count."""
    size = 32
    padded = np.resize(ids, (-(-len(ids) // size) * size, CONTEXT))
    losses = [batch_loss(model, padded[i : i + size]) for i in range(0, len(padded), size)]
    return float(np.concatenate(losses)[: len(ids)].mean())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/tiny_lm/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_lm/run"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32, help="rows of 128 tokens")
    parser.add_argument("--lr", type=float, default=0.02, help="peak, Muon")
    parser.add_argument("--adam-lr", type=float, default=0.003, help="peak, Adam")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--decay", type=int, default=1300, help="last steps, in which the rate falls to 0")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--corrupt", type=float, default=0.05, help="share of input tokens replaced by <unk>")
    parser.add_argument("--averaging", type=float, default=0.99)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--eval-rows", type=int, default=128, help="of each held-out source, while training")
    parser.add_argument("--stop", type=int, default=None, help="stop before this step (to resume later)")
    return parser.parse_args()


def restore(saved: Path, transform: optax.GradientTransformation) -> State:
    """The state saved there, or the first one."""
    model = initial(jax.random.key(0))
    state = State(model, model, transform.init(model), jnp.zeros((), jnp.int32))
    if saved.exists():
        return eqx.tree_deserialise_leaves(saved, state)
    return jax.tree.map(jnp.copy, state)  # train_step donates its buffers, so none may occur twice


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    transform = optimizer(args)
    saved = args.out / "state.eqx"
    state = restore(saved, transform)
    heldout = {s: rows([args.data / f"heldout_{s}.npz"], None)[: args.eval_rows] for s in ("glosses", "kjv")}
    start, losses, since = int(state.step), [], time.perf_counter()
    for step, (inputs, targets) in zip(
        range(start, args.stop or args.steps),
        batches(args.data, args.batch, start, args.corrupt),
        strict=False,
    ):
        state, value = train_step(state, jnp.asarray(inputs), jnp.asarray(targets), transform.update, args.averaging)
        losses.append(value)
        if (step + 1) % args.log_every == 0:
            row = {
                "step": step + 1,
                "tokens": (step + 1) * args.batch * CONTEXT,
                "train": float(np.mean(losses)),
            }
            row |= {f"heldout_{s}": evaluate(state.average, ids) for s, ids in heldout.items()}
            with (args.out / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
            partial_path = saved.with_suffix(".part")
            eqx.tree_serialise_leaves(partial_path, state)
            partial_path.replace(saved)
            print(row, f"{(time.perf_counter() - since) / len(losses):.3f} s/step", flush=True)
            losses, since = [], time.perf_counter()


if __name__ == "__main__":
    main()
