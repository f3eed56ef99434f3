"""The cost of int8 and bfloat16 stores: the error of a row, and the SAE that is trained on them.

    python experiments/int8/run.py [--work FOLDER]

Harvests the same rows of the embedded model as float32, bfloat16 and int8, compares them row by row, trains the same
SAE on each with three seeds and measures all of them on the same float32 rows of held-out text. Writes results.jsonl
and the tables of README.md.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from jhsae import config as cfg
from jhsae import evals
from jhsae.activations.config import Harvest
from jhsae.commands.harvest import run as harvest
from jhsae.data import Store
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train
from jhsae.training.run import train

HERE = Path(__file__).parent
DTYPES = ("float32", "bfloat16", "int8")
SEEDS = (0, 1, 2)
ROWS, HELD_OUT = 100_000, 20_000
SAE = ["sae.features=512", "stages.0.steps=500", "stages.0.learning_rate.steps=500", "checkpoint_every=500"]


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--work", type=Path, default=Path("runs/int8"), help="folder of the stores and runs")
    work = top.parse_args().work
    stores = {dtype: stored(work / dtype, "embedded", ROWS, dtype) for dtype in DTYPES}
    held_out = stored(work / "heldout", "embedded_heldout", HELD_OUT, "float32")
    rows = [errors(stores["float32"], store) for store in stores.values()]
    rows += [trained(work, dtype, seed, stores[dtype], held_out) for seed in SEEDS for dtype in DTYPES]
    (HERE / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    readme = HERE / "README.md"
    table = f"<!-- table -->\n{tables(rows)}\n<!-- end of table -->"
    readme.write_text(re.sub(r"<!-- table -->.*<!-- end of table -->", lambda _: table, readme.read_text(), flags=re.S))


def stored(out: Path, name: str, rows: int, dtype: str) -> Store:
    """The store at `out`, harvested now unless it is there."""
    if not out.exists():
        words = [f"out={out}", f"rows={rows}", f"dtype={dtype}"]
        harvest(cfg.load(Harvest, cfg.find(f"harvest/{name}.yaml"), words))
    return Store.open(out)


def errors(exact: Store, store: Store) -> dict:
    """How far the rows of a store are from those of the float32 store; both have them in the same order."""
    x, y = exact.read(0, exact.rows), store.read(0, store.rows)
    assert np.array_equal(exact.index(0, exact.rows), store.index(0, store.rows))
    square, variance = ((y - x) ** 2).astype(np.float64), x.astype(np.float64).var(axis=0)
    size = sum(file["bytes"] for name, file in store.manifest.files.items() if not name.startswith(("index", "tokens")))
    channel = np.sqrt(square.mean(axis=0) / variance)
    return {
        "kind": "rows",
        "dtype": store.manifest.dtype,
        "bytes_per_row": size / store.rows,
        "error_of_norm": float(np.sqrt(square.sum() / (x.astype(np.float64) ** 2).sum())),
        "error_of_deviation": float(np.sqrt(square.sum() / (variance.sum() * len(x)))),
        "worst_channel": float(channel.max()),
        "config_hash": store.manifest.config_hash,
        **provenance(),
    }


def trained(work: Path, dtype: str, seed: int, store: Store, held_out: Store) -> dict:
    """Held-out metrics of one SAE; seed 0 of every dtype sees the same rows in the same order, and so on."""
    words = [*SAE, f"data.store={store.path}", f"out={work}/{dtype}-{seed}", f"seed={seed}", f"data.seed={seed}"]
    config = cfg.load(Train, cfg.find("flat/topk.yaml"), words)
    sae, normalizer, about = load_sae(train(config))
    batches = (held_out.read(start, start + 4000) for start in range(0, HELD_OUT, 4000))
    metrics, _ = evals.fidelity(sae, normalizer, batches, held_out.manifest.mean)
    kept = {name: float(metrics[name]) for name in ("ev_r2", "mse", "l0", "dead")}
    return {"kind": "sae", "dtype": dtype, "seed": seed, **kept, "config_hash": about["config_hash"], **provenance()}


def provenance() -> dict:
    """Commit and device."""
    about = cfg.provenance()
    return {name: about[name] for name in ("commit", "platform", "device_count")}


def tables(rows: list[dict]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| stored as | bytes per row | error / norm | error / deviation from the mean | worst channel |",
        "|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row["kind"] == "rows"):
        shares = " | ".join(
            f"{100 * row[key]:.3f} %" for key in ("error_of_norm", "error_of_deviation", "worst_channel")
        )
        lines.append(f"| {row['dtype']} | {row['bytes_per_row']:.0f} | {shares} |")
    lines += ["", f"| trained on | {' | '.join(f'seed {seed}' for seed in SEEDS)} | mean | mean minus float32 |"]
    lines.append("|---|" + "---|" * (len(SEEDS) + 2))
    found = {(row["dtype"], row["seed"]): row["ev_r2"] for row in rows if row["kind"] == "sae"}
    means = {dtype: np.mean([found[dtype, seed] for seed in SEEDS]) for dtype in DTYPES}
    for dtype in DTYPES:
        each = " | ".join(f"{found[dtype, seed]:.4f}" for seed in SEEDS)
        lines.append(f"| {dtype} | {each} | {means[dtype]:.4f} | {means[dtype] - means['float32']:+.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
