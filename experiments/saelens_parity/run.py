"""TopK and BatchTopK trained here and by SAELens: the same rows in the same order, steps, width and learning rates.

    python experiments/saelens_parity/run.py train [--seeds 0 1 2] [--rates 1e-3 2e-3 4e-3]
    python experiments/saelens_parity/run.py table

`train` sweeps the learning rate with the first seed on both sides, takes each side's best by held-out explained
variance, and repeats that with the other seeds; every run is one row of results.jsonl. A SAELens run is saved as
SAELens saves it, read by `jhsae.interop.saelens`, and measured by the code that measures ours. `table` writes the
README's table. Needs ``pip install torch==2.13.0`` and then ``pip install -e '.[saelens]'``.
"""

import argparse
import shutil
import time
from pathlib import Path

import jax
import numpy as np

from jhsae import config as cfg
from jhsae import evals
from jhsae.data import Store, make_loader
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import append_line
from jhsae.interop import saelens
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train
from jhsae.training.run import train

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
ARCHITECTURES = ("topk", "batchtopk")
SIDES = ("jhsae", "saelens")


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("train", help="train what results.jsonl does not hold yet")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    one.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    one.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    one.add_argument("--store", default="stores/embedded")
    one.add_argument("--heldout", default="stores/embedded-heldout")
    one.add_argument("--runs", type=Path, default=Path("runs/saelens_parity"))
    verbs.add_parser("table", help="write the table of results.jsonl into README.md")
    arguments = top.parse_args()
    if arguments.verb == "table":
        write_table()
        return
    for architecture in arguments.architectures:
        for side in arguments.sides:
            first, *others = arguments.seeds
            swept = [measured(side, architecture, rate, first, arguments) for rate in arguments.rates]
            best = max(swept, key=lambda row: row["metrics"]["ev_r2"])["learning_rate"]
            for seed in others:
                measured(side, architecture, best, seed, arguments)


def measured(side: str, architecture: str, rate: float, seed: int, arguments: argparse.Namespace) -> dict:
    """The row of this run, from results.jsonl when it is there."""
    folder = arguments.runs / f"{side}-{architecture}-{rate:g}-{seed}"
    config = cfg.load(
        Train,
        cfg.find(f"flat/{architecture}.yaml"),
        [
            f"out={folder}",
            f"data.store={arguments.store}",
            f"data.seed={seed}",
            f"seed={seed}",
            f"stages.0.learning_rate.peak={rate}",
        ],
    )
    name = f"{side}-{cfg.config_hash(config)}"
    found = next((row for row in rows() if row["name"] == name), None)
    if found is not None:
        return found
    start = time.perf_counter()
    if side == "jhsae":
        sae, normalizer, _ = load_sae(train(config))
    else:
        sae, normalizer = by_saelens(config, architecture, rate, seed, folder)
    seconds = time.perf_counter() - start
    metrics = heldout(sae, normalizer, Store.open(arguments.heldout))
    row = {
        "name": name,
        "side": side,
        "architecture": architecture,
        "learning_rate": rate,
        "seed": seed,
        "config_hash": cfg.config_hash(config),
        **cfg.provenance(),
        "seconds": seconds,
        "metrics": metrics,
    }
    append_line(RESULTS, to_json(row))
    print(
        f"{folder.name}: EV {metrics['ev_r2']:.4f}, L0 {metrics['l0']:.2f}, dead {metrics['dead']:.4f}, {seconds:.0f} s"
    )
    return row


def by_saelens(config: Train, architecture: str, rate: float, seed: int, folder: Path):
    """SAELens's own trainer on our batches, normalised as ours are; then its inference files, read by us."""
    import torch
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    store = Store.open(config.data.store)
    normalizer = cfg.build(config.data.normalize).fit(store)
    batches = make_loader(store, config.data.batch, config.data.seed)
    stage, schedule = config.stages[0], config.stages[0].learning_rate
    sizes = {"d_in": config.sae["embed"], "d_sae": config.sae["features"]}
    k = config.sae["sparsifier"]["k"]
    if architecture == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=k))
    else:
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=float(k)))

    normalize = jax.jit(lambda x: normalizer(x)[0])
    provider = (torch.from_numpy(np.array(normalize(batch))) for batch in batches)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=stage.steps * config.data.batch,
            train_batch_size_samples=config.data.batch,
            lr=rate,
            lr_end=rate,  # of cosines alone
            lr_warm_up_steps=schedule["warmup"],
            lr_decay_steps=schedule["decay"],
            dead_feature_window=config.dead_window - 1,  # theirs is dead after more steps than this, ours from it on
            feature_sampling_window=config.feature_sampling_window,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        provider,
    )
    trainer.fit()
    shutil.rmtree(folder, ignore_errors=True)
    sae.save_inference_model(folder)
    return saelens.read(folder).sae, normalizer


def heldout(sae, normalizer, store: Store) -> dict:
    """Fidelity on every held-out row; the dead are those that fire on none of them."""
    batches = (store.read(start, min(start + 4096, store.rows)) for start in range(0, store.rows, 4096))
    metrics, _ = evals.fidelity(sae, normalizer, batches, store.manifest.mean)
    return metrics


def rows() -> list[dict]:
    return read_lines(RESULTS) if RESULTS.exists() else []


def write_table() -> None:
    """Both sides of each architecture at their best learning rate: mean over seeds, least and largest."""
    lines = [
        "| | | learning rate | explained variance | dead | L0 | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for architecture in ARCHITECTURES:
        for side in SIDES:
            mine = [row for row in rows() if row["side"] == side and row["architecture"] == architecture]
            rates = {
                row["learning_rate"]: [r for r in mine if r["learning_rate"] == row["learning_rate"]] for row in mine
            }
            for rate, found in sorted(rates.items()):
                cells = [
                    spread([r["metrics"][key] for r in found], digits)
                    for key, digits in (("ev_r2", 4), ("dead", 4), ("l0", 2))
                ]
                cells.append(spread([r["seconds"] for r in found], 0))
                lines.append(
                    f"| {architecture} | {side} | {rate:g} ({len(found)} seed{'s' * (len(found) > 1)}) | "
                    + " | ".join(cells)
                    + " |"
                )
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end of table -->\n")
    readme.write_text(before + "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end of table -->\n" + after)
    print("\n".join(lines))


def spread(values: list[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
