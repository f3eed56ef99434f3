"""A random language model, a store harvested from it, and small SAEs that read it, with their codes made densely."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from pursuits import pursuit
from small_lm import CONTEXT, EMBED, LAYER, VOCAB, save_language_model

from jhsae import lm
from jhsae.activations.config import Harvest, Source
from jhsae.commands.harvest import run
from jhsae.data import AbstractNormalizer, Store
from jhsae.sae import AbstractSAE, FlatSAE, HierarchicalSAE
from jhsae.sparsify import ExactL0, JumpReLU, ReLU, TopK

EXPERTS, ATOMS, FEATURES = 12, 4, 20


def harvested(folder: Path) -> tuple[Store, lm.LanguageModel]:
    """About 250 rows of 27 sequences of 10 tokens; special tokens have no row."""
    save_language_model(folder / "lm")
    rng = np.random.default_rng(1)
    documents = [" ".join(f"w{w}" for w in rng.integers(4, VOCAB, rng.integers(1, 12))) for _ in range(40)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    text = {"_target_": "jhsae.data.TextFiles", "paths": str(folder / "text.txt")}
    source = Source(str(folder / "lm"), LAYER)
    config = Harvest(
        str(folder / "store"), source, text, rows=10_000, context=CONTEXT, batch=8, dtype="float32", shuffle_rows=50
    )
    return Store.open(run(config)), lm.load(folder / "lm")


def saes() -> dict[str, AbstractSAE]:
    """Sparse and dense codes, flat and hierarchical, where the encoder biases differ between features; and a forest."""
    keys = jax.random.split(jax.random.key(0), 4)
    biases = ("encoder", "decoder")
    tree = HierarchicalSAE(EMBED, EXPERTS, 3, ATOMS, TopK(3), TopK(1), biases=biases, key=keys[0])
    dense_tree = HierarchicalSAE(EMBED, EXPERTS, 3, ATOMS, ReLU(), ReLU(), biases=biases, key=keys[1])
    return {
        "tree": _moved(tree),
        "dense_tree": _moved(dense_tree),
        "forest": pursuit((EXPERTS, 2, 2), EMBED, ExactL0(5, 1), empty=0),
        "topk": _moved(FlatSAE(EMBED, FEATURES, TopK(3), key=keys[2])),
        "jump": _moved(FlatSAE(EMBED, FEATURES, JumpReLU(0.5), key=keys[3])),
    }


def _moved(sae: Any) -> Any:
    shift = 0.3 * jax.random.normal(jax.random.key(9), sae.b_enc.shape)
    return eqx.tree_at(lambda s: s.b_enc, sae, shift)


def about(store: Store, name: str = "Small SAE") -> dict[str, Any]:
    return {"name": name, "reads": {"model": store.manifest.model, "layer": store.manifest.layer}}


def dense_codes(
    sae: AbstractSAE, normalizer: AbstractNormalizer, store: Store, sequences: int | None = None
) -> tuple[np.ndarray, int]:
    """[sequences, context, features], 0 where the store has no row; and the number of rows."""
    index = store.index(0, store.rows)
    codes = np.asarray(sae.encode(normalizer(jnp.asarray(store.read(0, store.rows)))[0]).dense())
    out = np.zeros((store.manifest.sequences, store.manifest.context, sae.features), np.float32)
    out[index[:, 0], index[:, 1]] = codes
    kept = store.manifest.sequences if sequences is None else sequences
    return out[:kept], int(np.sum(index[:, 0] < kept))
