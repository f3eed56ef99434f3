"""Reproduce one ablation: two parts of the quickstart's scale H-SAE swapped, three seeds, by `jhsae ablate`.

    python experiments/tour/ablation.py

The same as ``jhsae ablate experiments/tour/ablation.yaml`` after two harvests, with a figure: a point per seed, a line
at the mean.
"""

import json
from pathlib import Path

import numpy as np
from tour import BLUE, finish, options, panels

from jhsae import config
from jhsae.commands import ablate, harvest

METRICS = {"ev_r2": "explained variance, held out", "l0": "L0", "dead": "dead features"}
TINY = ["seeds=[0, 1]", "rows=256", "sequences=2", "axes.child_input=null"]
TINY_RUN = ["sae.experts=16", "data.batch=128", "stages.0.steps=6", "stages.0.learning_rate.steps=6"]
TINY_RUN += ["stages.0.learning_rate.warmup=2"]


def main() -> None:
    chosen = options(__doc__)
    out = chosen.out / ("ablation-tiny" if chosen.tiny else "ablation")
    stores = {name: out / name for name in ("train", "heldout")}
    for (split, folder), name in zip(stores.items(), ("embedded", "embedded_heldout"), strict=True):
        if not (folder / "manifest.json").exists():
            words = [f"out={folder}", "rows=1000" if chosen.tiny else f"rows={60_000 if split == 'train' else 15_000}"]
            harvest.run(config.load(harvest.Harvest, config.find(f"harvest/{name}.yaml"), words))
    settings = load(out, stores, chosen.tiny)
    folder = ablate.run(settings)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    groups = {name: [r for r in rows if r["variant"] == name] for name in dict.fromkeys(r["variant"] for r in rows)}

    figure, axes = panels(10, len(METRICS))
    for one, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for place, found in enumerate(groups.values()):
            values = [row["metrics"][metric] for row in found]
            one.plot([place] * len(values), values, "o", color=BLUE, alpha=0.7)
            one.hlines(np.mean(values), place - 0.25, place + 0.25, color=BLUE)
        one.set(xlim=(-0.6, len(groups) - 0.4), ylabel=label)
        one.set_xticks(range(len(groups)), groups, rotation=20)
    numbers = {
        name: {metric: [row["metrics"][metric] for row in found] for metric in METRICS}
        for name, found in groups.items()
    }
    hashes = {f"{row['variant']}, seed {row['seed']}": row["config_hash"] for row in rows}
    finish("ablation", figure, hashes, numbers, chosen.figures)


def load(out: Path, stores: dict[str, Path], tiny: bool) -> ablate.Ablate:
    """ablation.yaml with the paths of this run."""
    path = Path(__file__).with_name("ablation.yaml")
    shared = config.load(ablate.Ablate, path).overrides
    shared = [*shared, f"data.store={stores['train']}", *(TINY_RUN if tiny else [])]
    words = [f"out={out / 'runs'}", f"store={stores['heldout']}", f"overrides={json.dumps(shared)}"]
    return config.load(ablate.Ablate, path, words + (TINY if tiny else []))


if __name__ == "__main__":
    main()
