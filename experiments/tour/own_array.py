"""Train on your own array: NumPy in, a hierarchical and a flat SAE out, saved and loaded again.

    python experiments/tour/own_array.py

The array here is synthetic, so that the true directions are known: 16 parents, each with 6 children, of which at most
one is active with it. The figure shows how closely each true direction is matched by a row of the dictionary.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tour import BLUE, GREEN, finish, options, panels

import jhsae
from jhsae import config, evals
from jhsae.data import Identity
from jhsae.sae import AbstractSAE
from jhsae.training.checkpoint import save_sae
from jhsae.worlds import World, WorldConfig, build_world
from jhsae.worlds.config import TreeConfig

IDENTITY = {"_target_": "jhsae.data.Identity"}  # no input normaliser
ROUTE, PICK, FLAT = ({"_target_": "jhsae.sparsify.TopK", "k": k} for k in (4, 1, 8))  # 4 parents + 4 atoms, or 8
TREE = {"embed": 64, "experts": 16, "sub": 8, "atoms": 6, "route": ROUTE, "pick": PICK}
SAES = {  # `sae` in the YAML of jhsae train; 112 rows in either dictionary, as many as there are true directions
    "H-SAE": {"_target_": "jhsae.sae.HierarchicalSAE", **TREE},
    "flat TopK": {"_target_": "jhsae.sae.FlatSAE", "embed": 64, "features": 112, "sparsifier": FLAT},
}


WORLD = WorldConfig(
    out="none",
    embed=64,
    trees=TreeConfig(16, 6, depth=1, exclusive=1.0, scale_children=True),
    probabilities={"_target_": "jhsae.worlds.Zipf", "exponent": 0.5, "highest": 0.4, "lowest": 0.02},
    stds=0.15,
    child_cosine=0.0,
)


@dataclass(frozen=True)
class Settings:
    """What decides the numbers; their hash goes into results.jsonl."""

    rows: int
    steps: int
    saes: dict
    world: WorldConfig


def main() -> None:
    chosen = options(__doc__)
    settings = Settings(*((2_000, 20) if chosen.tiny else (50_000, 2_000)), SAES, WORLD)
    world, _ = build_world(settings.world)
    x = sample(world, 1, settings.rows)  # your array: [rows, embed], float32
    held_out = sample(world, 2, 2_000)
    figure, (axes,) = panels(6.5, 1)
    numbers = {}
    for (name, slot), colour in zip(SAES.items(), (BLUE, GREEN), strict=True):
        folder = chosen.out / "own_array" / f"{name.replace(' ', '-')}-{config.config_hash(settings)}"
        if not folder.exists():
            train_and_save(folder, slot, x, settings.steps)
        sae, normalizer, _ = jhsae.load_sae(folder)
        metrics, _ = evals.fidelity(sae, normalizer, [held_out], held_out.mean(axis=0))
        match = np.sort(best_cosines(np.asarray(world.features), np.asarray(sae.dictionary())))[::-1]
        numbers[name] = {"ev_r2": metrics["ev_r2"], "l0": metrics["l0"], "mean_best_cosine": float(match.mean())}
        axes.plot(match, color=colour, label=f"{name}: explained variance {metrics['ev_r2']:.3f}")
    axes.set(xlabel="true direction, best match first", ylabel="greatest cosine with a decoder row", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower left")
    finish("own_array", figure, config.config_hash(settings), numbers, chosen.figures)


def sample(world: World, seed: int, rows: int) -> np.ndarray:
    return np.asarray(world.sample(jax.random.key(seed), rows)[0])


def train_and_save(folder: Path, slot: dict, x: np.ndarray, steps: int) -> None:
    sae = config.build(slot, AbstractSAE, key=jax.random.key(0))
    sae, metrics = jhsae.fit(sae, x, steps=steps, batch=512, learning_rate=3e-3)
    save_sae(folder, sae, slot, IDENTITY, Identity(), {"name": folder.name, "last": metrics[-1]})


def best_cosines(true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """For every true direction the greatest cosine with a row of the dictionary (rows of norm 0 match nothing)."""
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return (true @ unit.T).max(axis=1)


if __name__ == "__main__":
    main()
