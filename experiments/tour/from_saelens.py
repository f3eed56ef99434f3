"""A SAELens script, line by line: own activations, training, saving, SAELens again, a dashboard and a sweep.

    python experiments/tour/from_saelens.py

The comments are SAELens's lines, below each is the one here. `acts` [documents, positions, embed] and `tokens`
[documents, positions] are yours. Verbs are those of the command line.
"""

# from sae_lens import SAE, ActivationsStore, LanguageModelSAERunnerConfig, SAETrainer, TopKTrainingSAE, ...
from pathlib import Path

import jax
import numpy as np

import jhsae
from jhsae.__main__ import main as verb

SWEEP = Path(__file__).with_name("from_saelens.yaml")  # the learning rate of each of two k


def script(acts: np.ndarray, tokens: np.ndarray) -> None:
    """The script."""
    # CacheActivationsRunner(cfg).run()                     # or your own loop over hook_z, resid_post, ...
    store = jhsae.Store.from_array(acts[:-16], tokens=tokens[:-16], out="stores/own")
    held_out = jhsae.Store.from_array(acts[-16:], tokens=tokens[-16:], out="stores/own-heldout")
    # cfg = TopKTrainingSAEConfig(d_in=64, d_sae=128, k=8)
    sae = jhsae.FlatSAE(acts.shape[-1], 128, jhsae.TopK(8), key=jax.random.key(0))
    # sae = SAETrainer(TopKTrainingSAE(cfg), data_provider=..., cfg=SAETrainerConfig(...)).fit()
    sae, metrics = jhsae.fit(sae, store, steps=200, batch=256, learning_rate=3e-3, out="runs/own", loggers=[])
    # sae.save_model("saved"); sae = SAE.load_from_disk("saved")
    sae, normalizer, about = jhsae.load_sae("runs/own")
    # codes = sae.encode(acts)                              # [..., d_in]; here the normaliser is a part of its own
    codes = sae.encode(normalizer(acts[-16:].reshape(-1, acts.shape[-1]))[0])
    # run_evals(sae, activation_store, model, eval_config)
    verb(["evaluate", "run=runs/own", f"store={held_out.path}"])
    # SAE.load_from_disk("exported")                        # reads what this writes
    verb(["export", "run=runs/own", "format=saelens", "out=exported"])
    # SaeVisRunner(SaeVisConfig(...)).run(...)              # SAEDashboard
    verb(["browse", "run=runs/own", f"store={held_out.path}", "out=own.html"])
    # wandb sweep sweep.yaml; wandb agent ...
    verb(["ablate", str(SWEEP), "out=sweep", f"store={held_out.path}"])
    print(metrics[-1]["explained_variance"], codes.l0().mean(), about["config_hash"])


def main() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(96, 64)).astype(np.float32)
    tokens = rng.integers(0, 96, (144, 32))
    acts = directions[tokens] + 0.5 * directions[np.roll(tokens, 1, axis=1)]
    script(acts.astype(np.float32), tokens)


if __name__ == "__main__":
    main()
