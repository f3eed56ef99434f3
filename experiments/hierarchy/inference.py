"""What trained trees of the study give with another encoder: fewer sweeps between picks, or more picks to drop.

    python experiments/hierarchy/inference.py --results experiments/hierarchy/inference.jsonl [--work runs/hierarchy]

On the first layer: `growth` of recommended at the largest L0, where its encoder multiplies most; `extra` of
recommended_exact at the first L0. A threshold is set again for each, so that the L0 on validation rows stays. A tree
that has a row is not measured again, one without a run is left out.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from jhsae.sparsify import ExactL0
from jhsae.training.checkpoint import load_sae

SHOWN = ("ev_r2", "ce_recovered", "l0", "encoder_macs")
HERE, SIZE = Path(__file__).parent, Size()


class Varied(NamedTuple):
    """What is varied of which arm."""

    key: str
    arm: str
    l0: int
    values: tuple[float, ...]


VARIED = (
    Varied("growth", "recommended", max(SIZE.l0s), (1.0, 1.25, 1.5, 2.0)),
    Varied("extra", "recommended_exact", SIZE.l0s[0], (4, 8, 16, 24)),
)


def main() -> None:
    """Measures what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="results file; rows are appended")
    parser.add_argument("--work", type=Path, default=Path("runs/hierarchy"), help="folder of the study's runs")
    given = parser.parse_args()
    results, provenance, rows = given.results.absolute(), cfg.provenance(), read_rows(HERE / "results.jsonl")
    os.chdir(given.work)
    known = {(row["key"], row["config_hash"]) for row in read_lines(results)} if results.exists() else set()
    for varied in VARIED:
        for seed in SIZE.seeds:
            job = Job("real", str(SIZE.layers[0]), varied.arm, varied.l0, 0.0, seed)
            _, rate = rate_of(job, SIZE, rows.get)
            config = settings(job._replace(rate=rate), SIZE)
            name = cfg.config_hash(config)
            if (varied.key, name) not in known and (Path(config.out) / "config.yaml").exists():
                row = {"key": varied.key, "arm": varied.arm, "l0": varied.l0, "seed": seed, "config_hash": name}
                row |= {"trained": f"{trained_with(config.sae, varied.key):g}"}
                append_line(results, to_json({**row, **provenance, "values": measured(config.out, varied)}))


def trained_with(sae: Mapping[str, Any], key: str) -> float:
    """The value of a key in the config of a tree."""
    return sae["growth"] if key == "growth" else sae["budget"]["extra"]


def measured(folder: str, varied: Varied) -> dict[str, dict[str, Any]]:
    """Test metrics of a trained tree at every value."""
    sae, normalizer, _ = load_sae(folder)
    held = held_out_of("real", str(SIZE.layers[0]), SIZE)
    found = {}
    for value in varied.values:
        one, _ = matched(encoded_with(sae, varied.key, value), normalizer, held, varied.l0)
        metrics = held.numbers(one, normalizer, "test")["metrics"]
        found[f"{value:g}"] = {name: metrics[name] for name in SHOWN}
    return found


def encoded_with(sae: PursuitSAE, key: str, value: float) -> PursuitSAE:
    """The same dictionary and threshold with another encoder."""
    parts = {"candidates": sae.candidates, "most_children": sae.most_children, "sweeps": sae.sweeps}
    growth, budget = (value, sae.budget) if key == "growth" else (sae.growth, ExactL0(sae.budget.k, int(value)))
    new = PursuitSAE(sae.embed, sae.levels, budget, growth=growth, **parts, key=jax.random.key(0))
    return eqx.tree_at(lambda one: (one.rows, one.b_dec), new, (sae.rows, sae.b_dec))


if __name__ == "__main__":
    main()
