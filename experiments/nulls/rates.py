"""How often a hierarchy is called significant: random vectors, a permuted hierarchy, a planted one.

    python experiments/nulls/rates.py [--seeds 50] [--permutations 200] [--json experiments/nulls/results.jsonl]

Each seed makes a true hierarchy of 8 roots with 4 children of 3 children each (136 features in 64 dimensions), and a
dictionary of as many latents in a tree of the same shape. `random`: the latents are random vectors. `permuted`: they
are the features and a little noise, but their parents are dealt anew. `planted`: with their true parents. Three
statistics are compared with their nulls (`jhsae.evals.compare`, one-sided): tree agreement, edges, and the distance
from 90 degrees of child minus parent and parent. The tables have the share of seeds with p below 0.05, for three ways
to count the draws of the null that equal the measured value: as extreme (the rule of `compare`), half of them (mid-p),
and a random part of them. Where there is nothing the share is 5 % for the angle, which has no ties, whatever the rule.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jhsae import config as cfg
from jhsae.evals import compare, delta_off_90
from jhsae.evals.nulls import LEVEL, Alternative, many_permuted_parents, permuted_parents
from jhsae.evals.truth import agreement
from jhsae.evals.truth.matching import Matching, cosines, unit
from jhsae.worlds import Hierarchy

EMBED, ROOTS, CHILDREN, GRANDCHILDREN, NOISE = 64, 8, 4, 3, 0.05
FRESH = 2**31  # seeds of permutations, other ones than those that draw the worlds
KINDS = ("random", "permuted", "planted")
TIES = ("against", "half", "at random")


@dataclass(frozen=True)
class Settings:
    """What the rates depend on."""

    seeds: int
    permutations: int
    embed: int = EMBED
    roots: int = ROOTS
    children: int = CHILDREN
    grandchildren: int = GRANDCHILDREN
    noise: float = NOISE


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--seeds", type=int, default=50)
    top.add_argument("--permutations", type=int, default=200)
    top.add_argument("--json", type=Path, help="append a row per statistic and kind, with every p-value")
    arguments = top.parse_args()
    settings = Settings(arguments.seeds, arguments.permutations)
    found = {kind: [measured(kind, s, arguments.permutations) for s in range(arguments.seeds)] for kind in KINDS}
    about = {"config": asdict(settings), "config_hash": cfg.config_hash(settings), **cfg.provenance()}
    for ties in TIES:
        print(f"\n| ties {ties} | " + " | ".join(KINDS) + " |\n|---|---|---|---|")
        for name in found["random"][0]:
            ps = {kind: [seed[name][ties] for seed in found[kind]] for kind in KINDS}
            shares = {kind: float(np.mean(np.array(p) < LEVEL)) for kind, p in ps.items()}
            print(f"| {name} | " + " | ".join(f"{share:.3f}" for share in shares.values()) + " |")
            if arguments.json:
                with arguments.json.open("a") as out:
                    for kind, share in shares.items():
                        row = {"statistic": name, "ties": ties, "kind": kind, "share": share, "p": ps[kind]}
                        out.write(json.dumps(row | about) + "\n")


def measured(kind: str, seed: int, permutations: int) -> dict[str, dict[str, float]]:
    """The p-values of one seed, by statistic and rule for ties."""
    rng = np.random.default_rng(seed)
    parents = tree()
    features, concepts = planted(parents, rng)
    if kind == "random":
        rows, positions = rng.normal(size=features.shape), rng.normal(size=features.shape)
    else:
        rows, positions = (a + NOISE * rng.normal(size=a.shape) for a in (features, concepts))
    own = permuted_parents(parents, rng) if kind == "permuted" else parents
    latent_of = Matching(cosines(features, rows)).latent_of
    hierarchy = Hierarchy.of_parents(parents.tolist())
    results = {}
    for name in ("tree", "edges"):
        found = agreement(name, latent_of, own, hierarchy, permutations, FRESH + seed)
        results[name] = p_values(found.agrees, found.null.mean(axis=1), "greater", seed)
    null = np.array([delta_off_90(positions, dealt) for dealt in many_permuted_parents(own, rng, permutations)])
    results["orthogonality"] = p_values(delta_off_90(positions, own), null.mean(axis=1), "less", seed)
    return results


def p_values(values: np.ndarray, null: np.ndarray, alternative: Alternative, seed: int) -> dict[str, float]:
    """That of `compare`, and those of the two other rules."""
    found = compare(values, null, alternative=alternative, seed=seed)
    ties = int(np.sum(np.abs(null - found.estimate) <= 1e-12))
    beyond = found.p * (1 + len(null)) - 1 - ties
    parts = {"against": 1.0, "half": 0.5, "at random": float(np.random.default_rng(FRESH + seed).random())}
    return {rule: (beyond + part * (1 + ties)) / (1 + len(null)) for rule, part in parts.items()}


def tree() -> np.ndarray:
    """The parent of each node, -1 for a root."""
    mids = ROOTS + np.arange(ROOTS * CHILDREN)
    return np.concatenate([np.full(ROOTS, -1), np.repeat(np.arange(ROOTS), CHILDREN), np.repeat(mids, GRANDCHILDREN)])


def planted(parents: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features, and positions of concepts: the position of the parent plus the feature, which is orthogonal to it."""
    features, positions = (np.zeros((len(parents), EMBED)) for _ in range(2))
    for node, parent in enumerate(parents):
        drawn, above = rng.normal(size=EMBED), positions[parent] if parent >= 0 else np.zeros(EMBED)
        drawn -= (drawn @ above) / max(above @ above, 1e-12) * above
        features[node] = unit(drawn)
        positions[node] = above + features[node]
    return features, positions


if __name__ == "__main__":
    main()
