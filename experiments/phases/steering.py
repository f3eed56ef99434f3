"""Steering by latents of a teacher's, a permuted teacher's, a random start's and a flat SAE, beside random directions.

    python experiments/phases/steering.py [--quick] [--config FILE] [KEY=VALUE ...]

Uses the runs of initialisation.py. For each of the concepts with most words that the teacher has not seen, the latent
of the top level that tells half of those words from other concepts' best is added at the last token of prompts of
held-out text, at half the mean norm of the residual stream whatever the norm of its row. The target tokens are the
words of the other half, siblings those of the other concepts, and the null 20 random directions of the same norm.
"""

from pathlib import Path
from typing import Any

import numpy as np
from initialisation import folder, held
from measure import HeldOut, tested
from phases import Place, options

from jhsae import evals
from jhsae.data import special_ids
from jhsae.evals.groups import code_matrix
from jhsae.evals.probing import class_tasks, selected
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.features.firings import firing_table
from jhsae.sae import AbstractSAE
from jhsae.training.checkpoint import load_sae

VARIANTS = ("teacher", "random", "flat", "permuted")
CONTROLS, STRENGTH, PROMPT = 20, 0.5, 16


def main() -> None:
    runs(options(__doc__))


def runs(place: Place) -> None:
    """Measures every variant with every seed."""
    for name in VARIANTS:
        for seed in place.settings.seeds:
            steer(place, name, seed)


def steer(place: Place, name: str, seed: int) -> None:
    """Measures one run of initialisation.py."""
    digest, path = folder(place, name, seed)
    place.record("steering", name, seed, digest, lambda: measure(path, held(place), seed))


def measure(path: Path, held: HeldOut, seed: int) -> dict[str, Any]:
    """Effects on the logits by concept, beside those of random directions."""
    sae, normalizer, _ = load_sae(path)
    rows = decoder_in_lm_units(sae, normalizer, held.store).astype(np.float64)
    rows = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)).astype(np.float32)
    latents = chosen(sae, normalizer, held)
    tokens = concept_tokens(held, list(latents))
    every = {token for own in tokens.values() for token in own}
    targets = [evals.SteeringTarget(latents[c], own, tuple(sorted(every - {*own}))) for c, own in tokens.items()]
    found = evals.steering(
        held.model.model,
        held.store.manifest.layer,
        evals.Spliced(sae, normalizer),
        rows,
        targets,
        held.store.tokens()[: held.place.settings.prompts, :PROMPT].astype(np.int64),
        list(special_ids(held.model.tokenizer)),
        STRENGTH * float(np.linalg.norm(held.x, axis=1).mean()),
        controls=CONTROLS,
        seed=seed,
    )
    numbers: dict[str, Any] = {"concepts": len(targets)}
    units: dict[str, dict[str, float]] = {}
    sentences: list[str] = []
    names = [held.labels.names[c] for c in tokens]
    for what in ("target", "siblings", "unrelated", "selectivity"):
        one = found[what]
        numbers[what], numbers[f"{what}_null"] = one["mean"], float(np.mean(one["null"]))
        units[what] = dict(zip(names, one["values"], strict=True))
        units[f"{what}_null"] = dict(zip(names, np.mean(one["null_values"], axis=0).tolist(), strict=True))
        if what in ("target", "selectivity"):
            tested(one["values"], one["null"], "greater", what, sentences)
    return {"numbers": numbers, "units": units, "sentences": sentences}


def chosen(sae: AbstractSAE, normalizer: Any, held: HeldOut) -> dict[int, int]:
    """Class -> latent of the top level, for the classes with most words to steer towards."""
    top = slice(0, sae.features if sae.tree is None else sae.tree.roots)
    codes = code_matrix(firing_table(sae, normalizer, held.store, held.store.rows))[:, top].tocsr()
    tasks = class_tasks(held.labels, 0)
    words = concept_tokens(held, [c for c, task in enumerate(tasks) if task is not None])
    most = sorted(words, key=lambda c: (-len(words[c]), c))[: held.place.settings.classes]
    return {
        c: int(selected(codes[task.fit], task.fit_positive, 1, signed=True)[0])
        for c in most
        if (task := tasks[c]) is not None
    }


def concept_tokens(held: HeldOut, classes: list[int]) -> dict[int, tuple[int, ...]]:
    """The tokens of each class that no latent was chosen on."""
    token, scored = held.store.index(0, held.store.rows)[:, 2], ~held.labels.half(0)
    return {c: tuple(np.unique(token[scored & (held.labels.classes == c)]).tolist()) for c in classes}


if __name__ == "__main__":
    main()
