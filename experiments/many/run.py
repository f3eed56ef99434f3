"""The time of three SAEs from one pass of the language model, beside the harvest and the longest of the three.

    python experiments/many/run.py [--work FOLDER] [--rounds 3] [--rows 1000000]

Each round runs, in an order that alternates: ``jhsae harvest`` of the three layers and ``jhsae train`` of the longest
run from its store; ``jhsae train several.yaml``; and the three runs of several.yaml one by one, whose files are
compared with those of the runs together. Every command is a process of its own, timed with its start and its
compilation. Text: the WordNet glosses of the package, written four times, in another order each. Writes results.jsonl
and the table of README.md.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jhsae import config as cfg
from jhsae.data import WordNetGlosses
from jhsae.training.config import Train
from jhsae.training.many_config import load_many

HERE = Path(__file__).parent
WORK = Path("runs/many")
TEXT, COPIES = "text.txt", 4
LONGEST = "layer4"
LAYERS = (2, 3, 4)
ORDERS = (("harvest", "longest", "together", "alone"), ("alone", "together", "harvest", "longest"))
FILES = ("sae/sae.safetensors", "metrics.jsonl")


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--work", type=Path, default=WORK, help="folder of the text, the stores and the runs")
    top.add_argument("--rounds", type=int, default=3)
    top.add_argument("--rows", type=int, default=1_000_000, help="rows that every SAE is trained on, each once")
    top.add_argument("--page", type=Path, default=HERE, help="folder of results.jsonl and README.md")
    given = top.parse_args()
    write_text(given.work)
    words = shared_words(given.work, given.rows)
    rows = []
    for number in range(given.rounds):
        for arm in ORDERS[number % 2]:
            rows.append(measured(arm, number, given.work, words, given.rows))
            print(rows[-1], flush=True)
        rows.append({"arm": "bits", "round": number, "differing": differing(given.work)})
        for arm in ("stores", "longest", "together", "alone"):
            shutil.rmtree(given.work / arm)
    about = {"rows": given.rows, "config_hashes": hashes(words), **cfg.provenance()}
    results = given.page / "results.jsonl"
    results.write_text("".join(json.dumps(row | about) + "\n" for row in rows))
    page = given.page / "README.md"
    page.write_text(
        re.sub(
            r"<!-- table -->.*<!-- end of table -->",
            lambda _: f"<!-- table -->\n{table(rows, about)}\n<!-- end of table -->",
            page.read_text(),
            flags=re.S,
        )
    )


def write_text(work: Path) -> None:
    """The text, unless it is there."""
    text = work / TEXT
    if not text.exists():
        work.mkdir(parents=True, exist_ok=True)
        glosses = [document.replace("\n", " ") for document in WordNetGlosses(split="train").documents()]
        orders = [np.random.default_rng(seed).permutation(len(glosses)) for seed in range(COPIES)]
        text.write_text("\n\n".join(glosses[i] for order in orders for i in order))


def shared_words(work: Path, rows: int) -> list[str]:
    """Overrides of every run: the text, and as many steps as it has batches."""
    steps = rows // cfg.load(Train, cfg.find("flat/topk.yaml")).data.batch
    return [
        f"data.live.rows={rows}",
        f"data.live.text={{_target_: jhsae.data.TextFiles, paths: {work / TEXT}}}",
        f"stages.0.steps={steps}",
        f"stages.0.learning_rate={{steps: {steps}, warmup: {steps // 20}, decay: {steps // 5}}}",
    ]


def commands(arm: str, work: Path, words: list[str], rows: int) -> list[list[str]]:
    """The command lines of an arm."""
    several = str(HERE / "several.yaml")
    if arm == "harvest":
        text = next(word for word in words if "text" in word).replace("data.live.text", "text")
        layers = f"lm.layer=[{','.join(map(str, LAYERS))}]"
        return [["harvest", "harvest/embedded.yaml", f"out={work}/stores/l{{layer}}", layers, f"rows={rows}", text]]
    if arm == "together":
        return [["train", several, f"out={work}/together", *words]]
    configs = {Path(c.out).name: c for c in load_many([several], [f"out={work}/{arm}", *words])}
    found = []
    for name, config in configs.items():
        path = work / f"{arm}-{name}.yaml"
        cfg.write(config, path)
        store = [f"data.store={work}/stores/l{LAYERS[-1]}", "data.live=null"] if arm == "longest" else []
        found += [["train", str(path), *store]] if arm == "alone" or name == LONGEST else []
    return found


def measured(arm: str, number: int, work: Path, words: list[str], rows: int) -> dict:
    """Wall-clock and processor seconds of an arm's commands, one after the other."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for line in commands(arm, work, words, rows):
        subprocess.run([sys.executable, "-m", "jhsae", *line], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    load = os.getloadavg()[0]
    return {"arm": arm, "round": number, "seconds": seconds, "cpu_seconds": cpu, "load": load}


def differing(work: Path) -> list[str]:
    """The files of the runs together that are not byte for byte those of the runs alone."""
    names = [
        f"{config.parent.name}/{file}" for config in sorted((work / "alone").glob("*/config.yaml")) for file in FILES
    ]
    return [name for name in names if (work / "alone" / name).read_bytes() != (work / "together" / name).read_bytes()]


def hashes(words: list[str]) -> dict[str, str]:
    """The config hash of every run."""
    configs = load_many([HERE / "several.yaml"], words)
    return {Path(config.out).name: cfg.config_hash(config) for config in configs}


def table(rows: list[dict], about: dict) -> str:
    """Medians over rounds, and the ratio of each round."""

    def of(arm: str, key: str = "seconds") -> list[float]:
        return [row[key] for row in rows if row["arm"] == arm]

    bound = [h + t for h, t in zip(of("harvest"), of("longest"), strict=True)]
    ratios = [t / b for t, b in zip(of("together"), bound, strict=True)]
    separate = [a / t for a, t in zip(of("alone"), of("together"), strict=True)]
    names = {
        "harvest": "`jhsae harvest`, three layers",
        "longest": "`jhsae train` of the longest run, from its store",
        "together": "`jhsae train several.yaml`, three runs",
        "alone": "the three runs, one by one",
    }
    lines = ["| | seconds | CPU seconds |", "|---|---|---|"]
    for arm, name in names.items():
        lines.append(f"| {name} | {spread(of(arm))} | {spread(of(arm, 'cpu_seconds'))} |")
    same = not any(row["differing"] for row in rows if row["arm"] == "bits")
    lines += [
        "",
        f"Three runs together over harvest and longest: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}). One by one over together: {statistics.median(separate):.2f} "
        f"({min(separate):.2f} to {max(separate):.2f}). Parameters and metrics.jsonl "
        f"{'are byte for byte equal' if same else 'DIFFER'}. Medians of {len(ratios)} rounds (least to greatest); "
        f"{about['rows']:,} rows; {about['platform']}, {os.cpu_count()} cores; commit `{str(about['commit'])[:12]}`.",
    ]
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """The median, and the least and the greatest."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
