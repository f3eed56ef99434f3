"""The data of the page of ``jhsae steer``: numbers and texts, as plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.evals.interventions import Attribution, Prompts, SplicedLM, Steered
from jhsae.features.names import label
from jhsae.features.token_text import token_text
from jhsae.files import bounded
from jhsae.files.escaping import visible
from jhsae.report.steering import MARKER

Json = dict[str, Any]
NEXT = 5  # tokens


def claim(out: Path) -> None:
    """Raises `UserError` where `out` is something else than an earlier page of the verb."""
    if out.suffix != ".html":
        raise UserError(f"out is {out}, expected the name of an HTML file; write out={out / 'steer.html'}")
    if out.exists() and MARKER not in bounded.read_start(out, 100_000).decode(errors="replace"):
        raise UserError(f"{out} exists and is no page of jhsae steer; write another out=...")


def described(
    config: Any,
    inside: SplicedLM,
    about: Json,
    prompts: Prompts,
    latents: Sequence[tuple[Steered, list[list[int]]]],
    plain: list[list[int]],
    found: Sequence[tuple[Attribution, list[float]]],
) -> Json:
    """Everything that the page and the table show.

    Args:
        config: of the verb.
        inside: the language model with the SAE in it.
        about: of the SAE.
        prompts: the token ids.
        latents: the effect of each edit, and the continuations with it.
        plain: the continuations without one.
        found: attributions, and the effects of single ablations.
    """
    name = about.get("name") or Path(config.run).name
    origin = {
        "run": name,
        "config": about.get("config_hash"),
        "commit": about.get("commit"),
        "page": cfg.config_hash(config),
        "page made at commit": cfg.provenance()["commit"],
    }
    given = cfg.to_dict(config)
    return {
        "title": config.title or f"Steering with latents of {name}",
        "model": inside.model.name,
        "layer": inside.layer,
        "edit": words(given["edit"]),
        "path": words(given["path"]),
        **{key: given[key] for key in ("error", "norm", "positions", "controls")},
        "normalizer": type(inside.normalizer).__name__,
        "latents": [_latent(inside, prompts, one, new, plain) for one, new in latents],
        "attributions": [_attribution(inside, one, effects) for one, effects in found],
        "origin": [(key, value or "unknown") for key, value in origin.items()],
    }


def words(slot: Json) -> str:
    """A slot in words: ``AddShare, share 0.5, within TimesParent``."""
    rest = [
        f"{key} {words(value) if isinstance(value, dict) else value}"
        for key, value in slot.items()
        if key != "_target_"
    ]
    return ", ".join([slot["_target_"].rpartition(".")[2], *rest])


def _latent(
    inside: SplicedLM, prompts: Prompts, one: Steered, continued: list[list[int]], plain: list[list[int]]
) -> Json:
    result, margin = one.comparison(), one.margin()
    draws = [] if result is None else one.null[:, np.isfinite(one.effects)].mean(axis=1).tolist()
    numbers = None if result is None or margin is None else {
        "effect": result.estimate, "low": result.low, "high": result.high, "p": result.p,
        "null": result.null, "null_low": float(np.percentile(draws, 2.5)),
        "null_high": float(np.percentile(draws, 97.5)),
        "margin": margin.estimate, "margin_low": margin.low, "margin_high": margin.high,
        "share": float(one.share[one.edited > 0].mean()),
    }  # fmt: skip
    rows = zip(prompts.lists(), one.effects, one.edited, one.before, one.after, plain, continued, strict=True)
    return {
        "name": one.latent,
        "tokens": _texts(inside, one.tokens),
        "numbers": numbers,
        "draws": draws,
        "prompts": [
            {
                "prompt": _texts(inside, ids),
                "effect": float(effect) if np.isfinite(effect) else None,
                "edited": int(edited),
                "before": _next(inside, before),
                "after": _next(inside, after),
                "continuation": "".join(_texts(inside, old)),
                "steered": "".join(_texts(inside, new)),
            }
            for ids, effect, edited, before, after, old, new in rows
        ],
    }


def _attribution(inside: SplicedLM, one: Attribution, effects: list[float]) -> Json:
    token, than = _texts(inside, [one.token, one.than])
    sums, tree = one.by_latent(), inside.sae.tree
    where = np.bincount(one.positions, weights=one.scores, minlength=len(one.prompt))
    largest = np.abs(where).max() or 1.0
    return {
        "token": token,
        "than": than,
        "difference": one.difference,
        "effect": one.effect,
        "sum": one.sum,
        "gap": one.gap,
        "error_effect": one.error_effect,
        "active": len(sums),
        "heat": list(zip(_texts(inside, one.prompt), where.tolist(), (where / largest).tolist(), strict=True)),
        "rows": [
            {
                "name": label(latent, tree),
                "score": sums[latent],
                "ablated": effect,
                "at": [(_texts(inside, [one.prompt[t]])[0], code) for t, code in _places(one, latent)],
            }
            for latent, effect in zip(sums, effects, strict=False)
        ],
    }


def _places(one: Attribution, latent: int) -> list[tuple[int, float]]:
    """The three positions where a latent counts most, and its codes there."""
    own = np.flatnonzero(one.features == latent)
    best = own[np.argsort(-np.abs(one.scores[own]), kind="stable")[:3]]
    return [(int(one.positions[i]), float(one.codes[i])) for i in sorted(best)]


def _texts(inside: SplicedLM, ids: Sequence[int]) -> list[str]:
    return [visible(text) for text in token_text(inside.model.tokenizer, ids)]


def _next(inside: SplicedLM, logits: np.ndarray) -> list[tuple[str, float]]:
    """The likeliest next tokens and their probabilities."""
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-logits, kind="stable")[:NEXT].tolist()
    return list(zip(_texts(inside, order), probabilities[order].tolist(), strict=True))
