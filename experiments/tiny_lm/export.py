"""Exports the averaged weights of train.py as the embedded model and measures them on all held-out text.

Writes a Hugging Face folder in bfloat16, its model card (model_card.md with the numbers filled in), and result.json
and curve.jsonl beside this file. The losses are of the exported folder, read back and computed in float32.
"""

import argparse
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import train
from rows import rows
from transformers import AutoTokenizer

from jhsae import lm

HERE = Path(__file__).parent
LIMIT = 16 * 2**20  # bytes


def unigram(data: Path, ids: np.ndarray) -> float:
    """Nats per token of the training frequencies (add one), the loss of a model that reads no context."""
    training = rows([data / "train_glosses.npz", data / "train_kjv.npz"], None)[:, 1:]
    counts = np.bincount(training.ravel(), minlength=train.CONFIG.vocab) + 1
    return float(-np.log(counts / counts.sum())[ids[:, 1:]].mean())


def measure(data: Path, model: lm.Gemma2) -> dict[str, dict[str, float]]:
    found, total = {}, 0
    for source in ("glosses", "kjv"):
        ids = rows([data / f"heldout_{source}.npz"], None)
        tokens = ids[:, 1:].size
        found[source] = {"tokens": tokens, "loss": train.evaluate(model, ids), "unigram": unigram(data, ids)}
        total += tokens
    both = {k: sum(f[k] * f["tokens"] for f in found.values()) / total for k in ("loss", "unigram")}
    return found | {"both": {"tokens": total, **both}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/tiny_lm/data"))
    parser.add_argument("--run", type=Path, default=Path("runs/tiny_lm/run"))
    parser.add_argument("--out", type=Path, default=lm.bundled())
    args = parser.parse_args()
    sys.argv = sys.argv[:1]  # the structure of the optimiser's state does not depend on train.py's options
    state = train.restore(args.run / "state.eqx", train.optimizer(train.arguments()))
    tokenizer = AutoTokenizer.from_pretrained(args.data / "tokenizer")
    shutil.rmtree(args.out, ignore_errors=True)
    lm.save(state.average, tokenizer, args.out)
    result = {"steps": int(state.step), "versions": {p: version(p) for p in ("jax", "equinox", "optax", "tokenizers")}}
    result["heldout"] = measure(args.data, lm.load(args.out).model)
    (HERE / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    shutil.copy(args.run / "curve.jsonl", HERE / "curve.jsonl")
    losses = {f"{s}_{k}": round(v, 3) for s, f in result["heldout"].items() for k, v in f.items()}
    card = (HERE / "model_card.md").read_text().format(steps=result["steps"], **losses)
    (args.out / "README.md").write_text(card)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(json.dumps(result["heldout"], indent=2), f"{size / 2**20:.1f} MiB")
    if size > LIMIT:
        raise SystemExit(f"{args.out} takes {size} bytes, the limit is {LIMIT}")


if __name__ == "__main__":
    main()
