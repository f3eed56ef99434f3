"""Steering where the answer is known: directions planted in dictionaries, and latents of trained SAEs beside them.

    python experiments/steering/planted.py [--tiny] [--results FILE]

Ten tokens of the embedded language model. For each a direction of its residual stream at layer 2 is a row of the
dictionary: the token's row of the unembedding, less the mean row (``unembedding``), or the mean stream right before the
token in training text, less the mean stream (``before``). The dictionary is that of a flat SAE, a gated one, an atom of
an H-SAE and a child of a pursuit, each with another normaliser and another edit; all other rows are random. About half
the norm of the stream is added at all tokens of held-out prompts; to an atom only where its expert is active, to a
child in proportion to its parent's code. Then, without a known
answer, latents of SAEs that are trained here; and the sum of attributions on them beside the true effect.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jhsae
from jhsae import config, evals
from jhsae.data import CenterScale, UnitNorm, WordNetGlosses, pack, special_ids
from jhsae.data.normalize import AbstractNormalizer, ArrayRows, LayerNorm, Whiten, times
from jhsae.evals.interventions import AbstractEdit, Prompts, SplicedLM, ablation_effects
from jhsae.evals.interventions.prompts import of_ids
from jhsae.features.contexts import spread_features
from jhsae.features.names import label
from jhsae.sae import AbstractSAE, FlatSAE, GatedSAE, HierarchicalSAE, PursuitSAE
from jhsae.sparsify import ExactL0, TopK

HERE = Path(__file__).parent
LAYER = 2
TOKENS = (" dog", " water", " plant", " king", " tree", " color", " city", " music", " disease", " ship")


@dataclass(frozen=True)
class Settings:
    """Sizes; part of every row."""

    rows: int = 30_000
    steps: int = 400
    prompts: int = 16
    prompt: int = 12
    cases: int = 10
    controls: int = 60
    share: float = 0.5
    points: int = 32
    seed: int = 0


TINY = Settings(rows=1_500, steps=5, prompts=3, prompt=6, cases=2, controls=40, points=12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="shows in seconds that it works")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    chosen = parser.parse_args()
    settings = TINY if chosen.tiny else Settings()
    about = {"settings": asdict(settings), "commit": config.provenance()["commit"]}
    place = Place(settings)
    lines = [json.dumps({**row, **about}) for rows in (planted(place), trained(place)) for row in rows]
    chosen.results.write_text("\n".join(lines) + "\n")
    print(f"{chosen.results}: {len(lines)} rows")


class Place:
    """The language model, its streams on training text, and held-out prompts."""

    def __init__(self, settings: Settings):
        self.settings, self.model = settings, jhsae.lm.load("embedded")
        text = WordNetGlosses(split="train").documents()
        self.ids = pack(text, self.model.tokenizer, 64, seed=0, rows=settings.rows).astype(np.int64)
        read = jax.jit(lambda ids: self.model.model.residual(ids, LAYER))
        self.x = np.concatenate([np.asarray(read(jnp.asarray(ids[None], jnp.int32))) for ids in self.ids])
        self.ordinary = ~np.isin(self.ids, special_ids(self.model.tokenizer))
        self.rows = ArrayRows(self.x[self.ordinary])
        held = pack(WordNetGlosses(split="heldout").documents(), self.model.tokenizer, settings.prompt, seed=1)
        full = held[(~np.isin(held[:, 1:], special_ids(self.model.tokenizer))).all(axis=1)]  # no end of a text in it
        self.prompts: Prompts = of_ids(full[: settings.prompts].tolist(), self.model)
        self.targets = [evals.interventions.token_id(token, self.model) for token in TOKENS[: settings.cases]]

    def directions(self) -> dict[str, np.ndarray]:
        """Unit rows in the units of the language model, one per token, by how they are planted."""
        head = np.asarray(self.model.model.unembedding())
        before = np.stack([self._before(token) for token in self.targets])
        found = {"unembedding": head[self.targets] - head.mean(axis=0), "before": before}
        return {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in found.items()}

    def _before(self, token: int) -> np.ndarray:
        where = (self.ids[:, 1:] == token) & self.ordinary[:, :-1]
        if not where.any():  # a small sample may hold no such place
            where = self.ordinary[:, :-1]
        return self.x[:, :-1][where].mean(axis=0) - self.rows.x.mean(axis=0)


def dictionaries(place: Place, rows: np.ndarray) -> Iterator[tuple[str, SplicedLM, list[str], AbstractEdit]]:
    """For each architecture: its name, the model with it inside, the names of the planted latents, and the edit."""
    count, embed, key = len(rows), rows.shape[1], jax.random.key(place.settings.seed)
    share = place.settings.share

    def inside(sae: AbstractSAE, normalizer: AbstractNormalizer) -> SplicedLM:
        return jhsae.with_sae(place.model, sae, LAYER, normalizer=normalizer.fit(place.rows))

    whiten = Whiten().fit(place.rows)
    flat = FlatSAE(embed, 64, TopK(8), key=key)
    folded = _unit(np.asarray(times(rows.astype(np.float32), whiten.matrix)))
    flat = eqx.tree_at(lambda s: s.W_dec, flat, flat.W_dec.at[:count].set(folded))
    yield "flat, Whiten", inside(flat, whiten), [f"f{i}" for i in range(count)], evals.AddShare(share)
    gated = GatedSAE(embed, 64, key=key)
    gated = eqx.tree_at(lambda s: s.W_dec, gated, gated.W_dec.at[:count].set(rows))
    yield (
        "gated, CenterScale",
        inside(gated, CenterScale()),
        [f"f{i}" for i in range(count)],
        evals.Add(share * embed**0.5),
    )
    tree = HierarchicalSAE(embed, 16, 4, 4, TopK(6), TopK(1), key=key)
    up = tree.up.at[:count, 0].set(rows[:16])
    atoms = tree.atom_dec.at[:count, 1].set(jnp.eye(4)[0])
    tree = eqx.tree_at(lambda s: (s.up, s.atom_dec), tree, (up, atoms))
    within = evals.AddShare(share, within=evals.WhereParentActive())
    yield "H-SAE atom in its expert, UnitNorm", inside(tree, UnitNorm()), [f"e{i}/a1" for i in range(count)], within
    forest = PursuitSAE(embed, (16, 4), ExactL0(8), key=key)
    places = 16 + 4 * np.arange(count) + 2
    forest = eqx.tree_at(lambda s: s.rows, forest, forest.rows.at[places].set(rows))
    yield (
        "pursuit child, LayerNorm",
        inside(forest, LayerNorm()),
        [f"e{i}/a2" for i in range(count)],
        evals.Add(4 * share, within=evals.TimesParent()),
    )


def planted(place: Place) -> Iterator[dict[str, Any]]:
    """A row per planting, architecture and token."""
    for how, rows in place.directions().items():
        for kind, inside, names, edit in dictionaries(place, rows):
            for norm in ("free", "kept") if kind.startswith("flat") else ("free",):
                for i, (name, token) in enumerate(zip(names, place.targets, strict=True)):
                    found = steer(place, inside, name, edit, [token], norm, other=place.targets[i - 1])
                    kept = ", norm kept" if norm == "kept" else ""
                    about = {"experiment": "planted", "how": how, "kind": kind + kept, "token": TOKENS[i]}
                    yield about | found


def steer(
    place: Place,
    inside: SplicedLM,
    name: str,
    edit: AbstractEdit,
    tokens: list[int] | None,
    norm: str = "free",
    other: int | None = None,
) -> dict[str, Any]:
    """One latent: the effect with its interval, beside random directions; and the effect on another token."""
    s = place.settings
    found = evals.steer(
        inside, place.prompts, name, edit, tokens, norm=norm, controls=s.controls, seed=s.seed, batch=32
    )
    result, margin, some = found.comparison(), found.margin(), np.isfinite(found.effects)
    if result is None or margin is None:
        return {"latent": name, "effect": None, "prompts": 0}
    numbers = {"effect": result.estimate, "low": result.low, "high": result.high, "p": result.p, "null": result.null}
    numbers["null_high"] = float(np.percentile(found.null[:, some].mean(axis=1), 97.5))
    numbers |= {"margin": margin.estimate, "margin_low": margin.low, "margin_high": margin.high}
    numbers |= {"prompts": result.units, "share": float(found.share[some].mean())}
    if other is not None:
        change = (found.after - found.before)[some]
        numbers["effect_on_another"] = float((change[:, other] - change.mean(axis=1)).mean())
    return {"latent": name} | numbers


def trained(place: Place) -> Iterator[dict[str, Any]]:
    """SAEs trained here: latents at even ranks of frequency on their own tokens, and attributions."""
    s, key = place.settings, jax.random.key(place.settings.seed)
    hsae = jhsae.mixture_of_experts_v2(256, experts=128, sub=4, atoms=8, k=8, key=key)
    for kind, sae, normalizer in (
        ("H-SAE", hsae, UnitNorm()),
        ("flat TopK", FlatSAE(256, 1152, TopK(16), key=key), CenterScale()),
    ):
        fitted = normalizer.fit(place.rows)
        sae, _ = jhsae.fit(sae, place.rows.x, steps=s.steps, batch=1024, normalizer=fitted, learning_rate=2e-3)
        inside = jhsae.with_sae(place.model, sae, LAYER, normalizer=fitted)
        fired = np.asarray(sae.encode(fitted(jnp.asarray(place.rows.x[:8192]))[0]).flat().fired())
        top = sae.features if sae.tree is None else sae.tree.roots
        groups = {kind: spread_features(fired[:top], s.cases)}
        if sae.tree is not None:
            groups[f"{kind}, atom in its expert"] = [top + row for row in spread_features(fired[top:], s.cases)]
        for group, rows in groups.items():
            edit = evals.AddShare(s.share, within=evals.WhereParentActive() if "atom" in group else evals.Everywhere())
            for row in rows:
                yield {"experiment": "trained", "kind": group} | steer(place, inside, label(row, sae.tree), edit, None)
        yield from attributions(place, inside, kind)


def attributions(place: Place, inside: SplicedLM, kind: str) -> Iterator[dict[str, Any]]:
    """A row per prompt and path: the two likeliest next tokens, the sum beside the effect, and single ablations."""
    for i in range(len(place.prompts.lengths)):
        prompt = place.prompts.part(i, i + 1)
        for name, path in (("AlongPath", evals.AlongPath(place.settings.points)), ("AtStream", evals.AtStream())):
            found = evals.attribute(inside, prompt, path=path)
            latents = sorted(found.by_latent())[:: max(1, len(found.by_latent()) // 8)][:8]  # not the largest alone
            yield {
                "experiment": "attribution",
                "kind": kind,
                "path": name,
                "difference": found.difference,
                "sum": found.sum,
                "effect": found.effect,
                "gap": found.gap,
                "error_effect": found.error_effect,
                "scores": [found.by_latent()[latent] for latent in latents],
                "ablated": ablation_effects(inside, prompt, found, latents),
            }


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
