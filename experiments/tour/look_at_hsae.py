"""Look at an H-SAE: which experts fire, what an expert's atoms are, and in which contexts they are active.

    python experiments/tour/look_at_hsae.py

Harvests layer 2 of the embedded language model, trains the quickstart's scale H-SAE for fewer steps, evaluates it on
held-out text, and reads the dictionary, the codes and contexts.json.
"""

import json

import jax.numpy as jnp
import numpy as np
from tour import BLUE, ORANGE, finish, options, panels

import jhsae
from jhsae import config
from jhsae.commands import evaluate, harvest, train


def main() -> None:
    chosen = options(__doc__)
    rows, steps = (2_000, 8) if chosen.tiny else (60_000, 400)
    run, stores = make_run(chosen.out / f"look-{steps}", rows, steps)

    sae, normalizer, about = jhsae.load_sae(run)
    store = jhsae.Store.open(stores["heldout"])
    inside, _ = normalizer(jnp.asarray(store.read(0, store.rows)))
    codes = sae.encode(inside)  # parents, and for each of them its atoms
    fired = np.asarray(codes.fired()) / store.rows  # experts first, then atom a of expert e at E + e * A + a
    experts, atoms = fired[: sae.experts], fired[sae.experts :].reshape(sae.experts, sae.atoms)
    shown = pick_expert(json.loads((run / "contexts.json").read_text()))
    expert, order = shown["feature"], np.argsort(-atoms[shown["feature"]])
    rows_of = np.asarray(sae.dictionary())
    unit = rows_of / np.maximum(np.linalg.norm(rows_of, axis=1, keepdims=True), 1e-12)
    cosines = unit[sae.experts + expert * sae.atoms + order] @ unit[expert]

    figure, (left, middle, right) = panels(11, 3)
    left.semilogy(np.sort(experts[experts > 0])[::-1], color=BLUE)
    left.set(title="experts", xlabel="live experts by frequency", ylabel="share of tokens on which one is active")
    middle.bar(range(sae.atoms), atoms[expert][order] / max(experts[expert], 1e-12), color=ORANGE)
    middle.set(title=f"atoms of expert {expert}", xlabel="atoms by frequency", ylabel="share of the expert's tokens")
    right.bar(range(sae.atoms), cosines, color=ORANGE)
    right.set(title="atom and parent", xlabel="the same atoms", ylabel="cosine with the expert's decoder row")
    print_contexts(shown)
    numbers = {
        "live_experts": int((experts > 0).sum()),
        "parents_per_token": float(experts.sum()),
        "atoms_per_token": float(atoms.sum()),
        "expert": expert,
        "tokens_of_the_expert": float(experts[expert]),
        "contexts": {str(one["feature"]): marked(one["contexts"][:3]) for one in [shown, *shown["atoms"]]},
    }
    finish("look_at_hsae", figure, about["config_hash"], numbers, chosen.figures)


def make_run(out, rows: int, steps: int):
    """A trained and evaluated run folder, and the stores; what is there already is kept."""
    stores = {"train": out / "store", "heldout": out / "heldout"}
    for (split, folder), name in zip(stores.items(), ("embedded", "embedded_heldout"), strict=True):
        if not (folder / "manifest.json").exists():
            words = [f"out={folder}", f"rows={rows if split == 'train' else rows // 4}"]
            harvest.run(config.load(harvest.Harvest, config.find(f"harvest/{name}.yaml"), words))
    words = [
        f"out={out / 'scale'}",
        f"data.store={stores['train']}",
        f"stages.0.steps={steps}",
        f"data.batch={min(1024, rows // 4)}",
    ]
    words += [f"stages.0.learning_rate.steps={steps}", "stages.0.learning_rate.warmup=5", "dead_window=100"]
    words += ["sae.experts=16"] if steps < 100 else []
    run = train.run(config.load(train.Train, config.find("quickstart/scale.yaml"), words))
    evaluate.run(evaluate.Evaluate(str(run), str(stores["heldout"]), "embedded", sequences=16, features=9, atoms=3))
    return run, stores


def pick_expert(contexts: list[dict]) -> dict:
    """The expert of middle frequency among those that have contexts: not chosen for being easy to read."""
    return sorted(contexts, key=lambda one: one["frequency"])[len(contexts) // 2]


def marked(contexts: list[dict]) -> list[str]:
    """Contexts as text, the token that fired in brackets."""
    pieces = [(c["tokens"][: c["at"]], c["tokens"][c["at"]], c["tokens"][c["at"] + 1 :]) for c in contexts]
    return ["".join([*before, "[", at.strip(), "]", *after]).strip() for before, at, after in pieces]


def print_contexts(shown: dict) -> None:
    for one in [shown, *shown["atoms"]]:
        print(f"atom {one['atom']}" if "atom" in one else f"expert {one['feature']}")
        print(*(f"  {text}" for text in marked(one["contexts"][:3])), sep="\n")


if __name__ == "__main__":
    main()
