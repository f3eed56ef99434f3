"""Trains and evaluates transcoders, crosscoders and cross-layer transcoders, flat and hierarchical, at equal cost.

    jhsae harvest harvest/embedded_hooks.yaml out=stores/hooks-{hook}
    jhsae harvest harvest/embedded_hooks_heldout.yaml out=stores/hooks-heldout-{hook}
    python experiments/transcoders/run.py [--seeds 0 1 2] [--runs FOLDER] [NAME ...]
    python experiments/transcoders/run.py --table

One row of results.jsonl for each arm and seed; rows that are there are not made again. ``--table`` writes README.md.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from jhsae import config as cfg
from jhsae.commands import evaluate
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import append_line, write_whole
from jhsae.training.config import Train
from jhsae.training.run import train

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "transcoders"
RESULTS, README = HERE / "results.jsonl", HERE / "README.md"
SKIP = "sae.skip={_target_: jhsae.sae.LinearSkip}"
MLP = ["mlp_in.0", "mlp_in.1", "mlp_in.2", "mlp_in.3"], ["mlp_out.0", "mlp_out.1", "mlp_out.2", "mlp_out.3"]
ONE, STREAMS = (["mlp_in.2"], ["mlp_out.2"]), (["resid.1", "resid.2", "resid.3"], [])
# name -> config, overrides, what is read and written; "few": as many multiplications in the encoder as the tree has
ARMS: dict[str, tuple[str, list[str], tuple[list[str], list[str]]]] = {
    "transcoder": ("transcoder", [], ONE),
    "transcoder, tree": ("transcoder_tree", [], ONE),
    "transcoder with skip": ("transcoder", [SKIP], ONE),
    "transcoder with skip, tree": ("transcoder_tree", [SKIP], ONE),
    "transcoder, few": ("transcoder", ["sae.features=133"], ONE),
    "crosscoder": ("crosscoder", [], STREAMS),
    "crosscoder, tree": ("crosscoder_tree", [], STREAMS),
    "crosscoder, few": ("crosscoder", ["sae.features=133"], STREAMS),
    "cross-layer": ("cross_layer", [], MLP),
    "cross-layer, tree": ("cross_layer_tree", [], MLP),
    "cross-layer, few": ("cross_layer", ["sae.features=268"], MLP),
}
PAIRS = [
    (flat, f"{kind}, tree")
    for kind in ("transcoder", "transcoder with skip", "crosscoder", "cross-layer")
    for flat in (kind, f"{kind}, few")
    if flat in ARMS
]
SEQUENCES = 48


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("names", nargs="*", help=f"of {', '.join(map(repr, ARMS))}; all by default")
    top.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    top.add_argument("--runs", type=Path, default=Path("runs/transcoders"))
    top.add_argument("--table", action="store_true", help="write README.md from results.jsonl")
    words = top.parse_args()
    if words.table:
        write_whole(README, page(rows()))
        return
    for seed in words.seeds:
        for name in words.names or ARMS:
            if not any(row["arm"] == name and row["seed"] == seed for row in rows()):
                append_line(RESULTS, to_json(measure(name, seed, words.runs)))


def measure(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """Trains and evaluates one arm."""
    file, overrides, hooks = ARMS[name]
    out = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    config = cfg.load(Train, CONFIGS / f"{file}.yaml", [*overrides, f"seed={seed}", f"data.seed={seed}", f"out={out}"])
    folder = str(train(config))
    store, target = (stores(side) for side in hooks)
    row = evaluate.run(evaluate.Evaluate(folder, store, "embedded", target=target, sequences=SEQUENCES, features=0))
    return {"arm": name, "seed": seed, "overrides": overrides} | row


def stores(hooks: list[str]) -> str | list[str] | None:
    """The held-out stores of some hooks, as `Evaluate` takes them."""
    found = [f"stores/hooks-heldout-{hook}" for hook in hooks]
    return found[0] if len(found) == 1 else found or None


def rows() -> list[dict[str, Any]]:
    """The rows there are."""
    return read_lines(RESULTS) if RESULTS.exists() else []


def main_numbers(found: list[dict[str, Any]], key: str) -> np.ndarray:
    """One number of every seed, in the order of the seeds."""
    return np.array([row["metrics"][key] for row in sorted(found, key=lambda row: row["seed"])], np.float64)


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def page(found: list[dict[str, Any]]) -> str:
    """README.md."""
    by_arm = {name: [row for row in found if row["arm"] == name] for name in ARMS}
    table = [
        "| | explained variance of the target | CE recovered | L0 | parents alone | dead | parameters | encoder MACs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in by_arm.items():
        if not own:
            continue
        first = own[0]["metrics"]
        parents = "n/a" if "parents_only_ev_r2" not in first else spread(main_numbers(own, "parents_only_ev_r2"))
        table.append(
            f"| {name} | {spread(main_numbers(own, 'ev_r2'))} | {spread(main_numbers(own, 'ce_recovered'))} | "
            f"{main_numbers(own, 'l0').mean():.1f} | {parents} | {100 * main_numbers(own, 'dead').mean():.1f} % | "
            f"{first['parameters']:,} | {main_numbers(own, 'encoder_macs').mean():,.0f} |"
        )
    commits = ", ".join(sorted({f"`{str(row['commit'])[:12]}`" for row in found}))
    hashes = sorted({(row["arm"], row["config_hash"]) for row in found if row["seed"] == 0})
    seeds = ", ".join(map(str, sorted({row["seed"] for row in found})))
    origin = f"Seeds {seeds}, mean ± standard deviation. Commit {commits}. Config hashes of seed 0: "
    origin += ", ".join(f"{arm} `{digest}`" for arm, digest in hashes) + "."
    parts = {"table": [*table, "", origin], "differences": differences(by_arm), "layers": layers(by_arm)}
    text = README.read_text()
    for key, lines in parts.items():
        before, _, rest = text.partition(f"<!-- {key} -->\n")
        _, _, after = rest.partition(f"<!-- end of {key} -->\n")
        text = f"{before}<!-- {key} -->\n" + "\n".join(lines) + f"\n<!-- end of {key} -->\n{after}"
    return text


def differences(by_arm: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Tree less flat, seed by seed."""
    lines = [
        "| tree less | explained variance | of each seed | CE recovered | of each seed |",
        "|---|---|---|---|---|",
    ]
    for flat, tree in PAIRS:
        if not by_arm[flat] or len(by_arm[flat]) != len(by_arm[tree]):
            continue
        cells = []
        for key in ("ev_r2", "ce_recovered"):
            change = main_numbers(by_arm[tree], key) - main_numbers(by_arm[flat], key)
            cells += [f"{change.mean():+.3f}", ", ".join(f"{one:+.3f}" for one in change)]
        lines.append(f"| {flat} | {' | '.join(cells)} |")
    return lines


def layers(by_arm: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The explained variance of each layer that is written."""
    lines = []
    for name, own in by_arm.items():
        if own and "ev_r2_by_layer" in own[0]["metrics"]:
            written = ARMS[name][2][1] or ARMS[name][2][0]
            means = np.mean([row["metrics"]["ev_r2_by_layer"] for row in own], axis=0)
            cells = ", ".join(f"{hook} {mean:.3f}" for hook, mean in zip(written, means, strict=True))
            lines.append(f"- {name}: {cells}")
    return lines


if __name__ == "__main__":
    main()
