"""Look at an H-SAE: which experts fire, what an expert's atoms are, and in which contexts they are active.

    python experiments/tour/look_at_hsae.py

Harvests layer 2 of the embedded language model, trains the quickstart's scale H-SAE for fewer steps, evaluates it on
held-out text, and reads the dictionary, the codes and contexts.json.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tour import BLUE, ORANGE, finish, harvested, options, panels

import jhsae
from jhsae import config
from jhsae.commands import evaluate, train

SHORT = ["stages.0.steps={0}", "stages.0.learning_rate.steps={0}", "stages.0.learning_rate.warmup=4", "dead_window=100"]
TINY = ["sae.experts=16", "data.batch=128"]


def main() -> None:
    chosen = options(__doc__)
    rows, steps = (1_000, 8) if chosen.tiny else (60_000, 400)
    run, held_out = trained(chosen.out, rows, steps, TINY if chosen.tiny else [])

    sae, normalizer, about = jhsae.load_sae(run)
    inside, _ = normalizer(jnp.asarray(held_out.read(0, held_out.rows)))
    codes = sae.encode(inside)  # for each token its experts (parents), and for each of them its atoms
    fired = np.asarray(codes.fired()) / held_out.rows  # experts first, then atom a of expert e at E + e * A + a
    experts, atoms = fired[: sae.experts], fired[sae.experts :].reshape(sae.experts, sae.atoms)
    contexts = json.loads((run / "contexts.json").read_text())  # of experts at even ranks of frequency
    shown = contexts[len(contexts) // 2]  # the middle one: not chosen for being easy to read
    expert, order = shown["feature"], np.argsort(-atoms[shown["feature"]])
    dictionary = np.asarray(sae.dictionary())
    unit = dictionary / np.maximum(np.linalg.norm(dictionary, axis=1, keepdims=True), 1e-12)
    cosines = unit[sae.experts + expert * sae.atoms + order] @ unit[expert]

    figure, (left, middle, right) = panels(11, 3)
    left.semilogy(np.sort(experts[experts > 0])[::-1], color=BLUE)
    left.set(title="experts", xlabel="live experts by frequency", ylabel="share of tokens on which one is active")
    middle.bar(range(sae.atoms), atoms[expert][order] / max(experts[expert], 1e-12), color=ORANGE)
    middle.set(title=f"atoms of expert {expert}", xlabel="atoms by frequency", ylabel="share of the expert's tokens")
    right.bar(range(sae.atoms), cosines, color=ORANGE)
    right.set(title="atom and parent", xlabel="the same atoms", ylabel="cosine with the expert's decoder row")
    numbers = {"live_experts": int((experts > 0).sum()), "expert": expert, "expert_share": float(experts[expert])}
    numbers |= {"parents_per_token": float(experts.sum()), "atoms_per_token": float(atoms.sum())}
    numbers["contexts"] = {f"expert {expert}": marked(shown["contexts"][:3])}
    numbers["contexts"] |= {f"atom {one['atom']}": marked(one["contexts"][:3]) for one in shown["atoms"]}
    finish("look_at_hsae", figure, about["config_hash"], numbers, chosen.figures)


def trained(out: Path, rows: int, steps: int, changes: list[str]) -> tuple[Path, jhsae.Store]:
    """A trained and evaluated run folder, and the held-out store; what is there already is kept."""
    store, held_out = harvested(out, rows)
    words = [f"out={out / f'scale-{steps}'}", f"data.store={store}", *changes, *(w.format(steps) for w in SHORT)]
    run = train.run(config.load(train.Train, config.find("quickstart/scale.yaml"), words))
    evaluate.run(evaluate.Evaluate(str(run), str(held_out), "embedded", sequences=16, features=9, atoms=3))
    return run, jhsae.Store.open(held_out)


def marked(contexts: list[dict]) -> list[str]:
    """Contexts as text, the token that fired in brackets."""
    pieces = [(c["tokens"][: c["at"]], c["tokens"][c["at"]], c["tokens"][c["at"] + 1 :]) for c in contexts]
    return ["".join([*before, "[", at, "]", *after]).strip() for before, at, after in pieces]


if __name__ == "__main__":
    main()
