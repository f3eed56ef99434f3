"""Latents of an SAE, steered in the language model that it reads: the numbers of `jhsae evaluate`.

Each latent's direction is added at the last token of prompts of held-out text, at half the mean norm of the residual
stream whatever the norm of its row, so that SAEs are compared by direction alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jhsae.data import AbstractNormalizer, Store, special_ids
from jhsae.evals.beside_null import Summary
from jhsae.evals.nulls import Alternative
from jhsae.evals.splice import Spliced
from jhsae.evals.steering import own_targets, steering
from jhsae.features.decoder import decoder_in_lm_units, directions
from jhsae.lm import LanguageModel
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import AbstractSAE

STRENGTH = 0.5  # as a share of the mean norm of the residual stream
CONTROLS = 20  # random directions per latent: fewer have no p-value below 0.05
PROMPT = 16  # tokens
KINDS = ("target", "siblings", "unrelated", "selectivity")
PREDICTED: dict[str, Alternative] = {"target": "greater", "selectivity": "greater"}


@ranged
def steered(
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    store: Store,
    model: LanguageModel,
    latents: Sequence[int],
    prompts: Count = 32,
    batch: Count = 16,
    seed: Seed = 0,
) -> dict[str, Any]:
    """The effect of steering on the tokens that each latent's own row raises most, and on those of its siblings.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        store: of held-out text.
        model: the language model of the store, with all of its blocks.
        latents: those to steer.
        prompts: the first sequences of the store, cut to 16 tokens.
        batch: prompts per forward pass.
        seed: of the random directions.

    Returns:
        ``numbers`` (`steer_target`, `steer_siblings`, `steer_unrelated`, `steer_selectivity`, in nats of logit, each
        with `_null`; None where there is no latent), ``sentences``, and ``details`` (those of `jhsae.evals.steering`).
    """
    if not latents:
        return {"numbers": {f"steer_{kind}{end}": None for kind in KINDS for end in ("", "_null")}, "sentences": []}
    rows = decoder_in_lm_units(sae, normalizer, store).astype(np.float32)
    targets = own_targets(rows, model.model.unembedding(), latents, sae.tree)
    tokens = store.tokens()[:prompts, :PROMPT].astype(np.int64)
    norm = float(np.linalg.norm(store.read(0, min(store.rows, 4096)).astype(np.float64), axis=1).mean())
    found = steering(
        model.model,
        store.manifest.layer,
        Spliced(sae, normalizer),
        np.asarray(directions(rows)),
        targets,
        tokens,
        list(special_ids(model.tokenizer)),
        STRENGTH * norm,
        controls=CONTROLS,
        seed=seed,
        batch=batch,
    )
    summary = Summary()
    for name in KINDS:
        summary.add(found[name], f"steer_{name}")
        if name in PREDICTED:
            summary.compare(found[name], f"steering, {name}", PREDICTED[name], seed)
    return {"numbers": summary.numbers, "details": found, "sentences": summary.sentences}
