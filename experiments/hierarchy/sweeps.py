"""Fewer sweeps between the picks: what they cost the trained trees of the study, and what the encoder saves.

    python experiments/hierarchy/sweeps.py --results experiments/hierarchy/sweeps.jsonl [--work runs/hierarchy]

Each trained tree (recommended, first layer, the largest L0, at which its encoder multiplies most) is measured on the
held-out rows at several values of `growth`, its threshold set again for each so that the L0 on validation rows stays.
Trees that have a row are not measured again.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jobs import Job, rate_of
from measure import held_out_of, matched, settings
from settings import Size
from study import read_rows

from jhsae import config as cfg
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import append_line
from jhsae.sae import PursuitSAE
from jhsae.training.checkpoint import load_sae

GROWTH = (1.0, 1.25, 1.5, 2.0)
SHOWN = ("ev_r2", "ce_recovered", "l0", "encoder_macs")
HERE, SIZE = Path(__file__).parent, Size()
L0 = max(SIZE.l0s)


def main() -> None:
    """Measures what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="results file; rows are appended")
    parser.add_argument("--work", type=Path, default=Path("runs/hierarchy"), help="folder of the study's runs")
    given = parser.parse_args()
    results, provenance, rows = given.results.absolute(), cfg.provenance(), read_rows(HERE / "results.jsonl")
    os.chdir(given.work)
    known = {row["config_hash"] for row in read_lines(results)} if results.exists() else set()
    for seed in SIZE.seeds:
        job = Job("real", str(SIZE.layers[0]), "recommended", L0, 0.0, seed)
        _, rate = rate_of(job, SIZE, rows.get)
        config = settings(job._replace(rate=rate), SIZE)
        if (name := cfg.config_hash(config)) not in known:
            append_line(
                results, to_json({"seed": seed, "config_hash": name, **provenance, "growth": measured(config.out)})
            )


def measured(folder: str) -> dict[str, dict[str, Any]]:
    """Test metrics of a trained tree at every growth."""
    sae, normalizer, _ = load_sae(folder)
    held = held_out_of("real", str(SIZE.layers[0]), SIZE)
    found = {}
    for growth in GROWTH:
        one, _ = matched(at_growth(sae, growth), normalizer, held, L0)
        metrics = held.numbers(one, normalizer, "test")["metrics"]
        found[f"{growth:g}"] = {name: metrics[name] for name in SHOWN}
    return found


def at_growth(sae: PursuitSAE, growth: float) -> PursuitSAE:
    """The same dictionary and threshold with other sweeps."""
    parts = {"candidates": sae.candidates, "most_children": sae.most_children, "sweeps": sae.sweeps}
    new = PursuitSAE(sae.embed, sae.levels, sae.budget, growth=growth, **parts, key=jax.random.key(0))
    return eqx.tree_at(lambda one: (one.rows, one.b_dec), new, (sae.rows, sae.b_dec))


if __name__ == "__main__":
    main()
