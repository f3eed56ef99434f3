"""Sizes and small pieces that the artifacts share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jhsae.__main__ import main

EMBED, FEATURES, EXPERTS, SUB, ATOMS, ROWS = 8, 12, 4, 2, 3, 64
FLAT = {
    "_target_": "jhsae.sae.FlatSAE",
    "embed": EMBED,
    "features": FEATURES,
    "sparsifier": {"_target_": "jhsae.sparsify.TopK", "k": 3},
}
TREE = {
    "_target_": "jhsae.sae.HierarchicalSAE",
    "embed": EMBED,
    "experts": EXPERTS,
    "sub": SUB,
    "atoms": ATOMS,
    "route": {"_target_": "jhsae.sparsify.TopK", "k": 2},
    "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
}
IDENTITY, SCALE = {"_target_": "jhsae.data.Identity"}, {"_target_": "jhsae.data.CenterScale"}
ABOUT = {
    "name": "small",
    "config_hash": "abcdefabcdef",
    "commit": "c0ffee",
    "reads": {"model": "tiny", "layer": 1},
    "store": {"path": "store", "sha256": "ab" * 32},
    "versions": {"jhsae": "0"},
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Small random weights."""
    return (0.3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def command(*words: str) -> Callable[[], int]:
    """The command line."""
    return lambda: main(list(words))


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
