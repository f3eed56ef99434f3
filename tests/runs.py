"""A small store and the smallest training config that uses every part of the loop, shared by the tests of the verbs."""

from pathlib import Path

import numpy as np
import yaml

from jhsae.data import Store, write_array

EMBED = 16


def activations(rows: int = 512) -> np.ndarray:
    """Rows with structure: sparse sums of 24 fixed directions."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(24, EMBED)).astype(np.float32)
    coefficients = rng.random((rows, 24)) * (rng.random((rows, 24)) < 0.15) + 1e-3
    return (coefficients @ directions).astype(np.float32)


def store(folder: Path, rows: int = 512) -> Store:
    """A store of `activations` in 32-row chunks."""
    return write_array(folder, activations(rows), shard_rows=128, chunk_rows=32)


def train_config(folder: Path, store: Path, out: Path, **changes: object) -> Path:
    """A YAML of ``jhsae train``: a hierarchical SAE with noisy routing, two stages, one of them frozen."""
    top = {
        "out": str(out),
        "data": {"store": str(store), "batch": 64, "normalize": {"_target_": "jhsae.data.CenterScale"}},
        "sae": {
            "_target_": "jhsae.sae.HierarchicalSAE",
            "embed": EMBED,
            "experts": 12,
            "sub": 2,
            "atoms": 3,
            "route": {
                "_target_": "jhsae.sparsify.GumbelTopK",
                "k": 2,
                "temperature": {"_target_": "jhsae.schedule.Linear", "start": 1.5, "end": 0.5, "steps": 40},
            },
            "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
            "biases": ["encoder", "decoder"],
        },
        "objective": {
            "reconstruction": {"_target_": "jhsae.losses.SquaredError"},
            "parents_only": {"_target_": "jhsae.losses.ParentsOnly"},
        },
        "weights": {"parents_only": 0.1},
        "init": [{"_target_": "jhsae.init.UnitDecoder"}],
        "stages": [
            {"name": "freeze", "steps": 15, "learning_rate": 1e-2, "freeze": ["router_dec", "atom_dec"]},
            {"name": "adapt", "steps": 25, "learning_rate": 1e-2},
        ],
        "log_every": 1,
        "checkpoint_every": 7,
    }
    path = folder / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(top | changes))
    return path
