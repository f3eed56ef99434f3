"""Reproduce one ablation: experts that read the token, or what the parents leave of it; three seeds.

    python experiments/tour/ablation.py

The base is the quickstart's scale H-SAE. The same as ``jhsae ablate experiments/tour/ablation.yaml`` on its stores,
with a figure: a point per seed, a line at the mean.
"""

import json
from pathlib import Path

import numpy as np
from tour import BLUE, finish, harvested, options, panels

from jhsae import config
from jhsae.commands import ablate

METRICS = {"ev_r2": "explained variance, held out", "l0": "L0", "dead": "dead features"}
TINY = ["seeds=[0]", "rows=200", "sequences=2"]
TINY_RUN = ["sae.experts=16", "data.batch=128", "stages.0.steps=6", "stages.0.learning_rate.steps=6"]
TINY_RUN += ["stages.0.learning_rate.warmup=2"]


def main() -> None:
    chosen = options(__doc__)
    rows = results(chosen.out, chosen.tiny)
    groups = {name: [r for r in rows if r["variant"] == name] for name in dict.fromkeys(r["variant"] for r in rows)}
    numbers = {name: {m: [row["metrics"][m] for row in found] for m in METRICS} for name, found in groups.items()}
    figure, axes = panels(10, len(METRICS))
    for one, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for place, found in enumerate(numbers.values()):
            one.plot([place] * len(found[metric]), found[metric], "o", color=BLUE, alpha=0.7)
            one.hlines(np.mean(found[metric]), place - 0.25, place + 0.25, color=BLUE)
        one.set(xlim=(-0.6, len(groups) - 0.4), ylabel=label)
        one.set_xticks(range(len(groups)), groups, rotation=15)
    hashes = {f"{row['variant']}, seed {row['seed']}": row["config_hash"] for row in rows}
    finish("ablation", figure, hashes, numbers, chosen.figures)


def results(out: Path, tiny: bool) -> list[dict]:
    """The rows of results.jsonl, one per variant and seed: ablation.yaml with the stores and the folder of this run."""
    store, held_out = harvested(out, 1_000 if tiny else 60_000)
    path = Path(__file__).with_name("ablation.yaml")
    shared = [*config.load(ablate.Ablate, path).overrides, f"data.store={store}", *(TINY_RUN if tiny else [])]
    words = [f"out={out / 'ablation'}", f"store={held_out}", f"overrides={json.dumps(shared)}"]
    folder = ablate.run(config.load(ablate.Ablate, path, words + (TINY if tiny else [])))
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
