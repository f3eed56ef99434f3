"""20 training runs, each killed with SIGKILL at a random moment, each resumed: compared with a run that nobody killed.

    python experiments/faults/kill.py [--runs 20] [--seed 0] [--jobs 2]

A kill comes when a random row has been logged, plus up to 0.3 seconds: saves are so frequent that many a kill falls
into one. Writes results.jsonl beside this file, one row per run, and the table of README.md. CPU, one device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
STEPS, EVERY = 60, 4
START = "import sys, jhsae.__main__ as m; sys.exit(m.main(['train', sys.argv[1]]))"
HEAD = "<!-- table -->\n"


def config(folder: Path, name: str) -> Path:
    """A small H-SAE with noisy routing, so that the key, the moments and the order of the rows all matter."""
    sae = {
        "_target_": "jhsae.sae.HierarchicalSAE",
        "embed": 32,
        "experts": 64,
        "sub": 2,
        "atoms": 4,
        "route": {
            "_target_": "jhsae.sparsify.GumbelTopK",
            "k": 4,
            "temperature": {"_target_": "jhsae.schedule.Linear", "start": 1.5, "end": 0.5, "steps": STEPS},
        },
        "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
        "biases": ["encoder", "decoder"],
    }
    top = {
        "out": str(folder / name),
        "data": {"store": str(folder / "store"), "batch": 128, "normalize": {"_target_": "jhsae.data.CenterScale"}},
        "sae": sae,
        "objective": {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}},
        "stages": [{"name": "a", "steps": STEPS, "learning_rate": 1e-2}],
        "log_every": 1,
        "checkpoint_every": EVERY,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(top))
    return path


def start(path: Path) -> subprocess.Popen:
    """`jhsae train` on one CPU device; what was compiled once is not compiled again."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(path.parent / "compiled")}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | cache
    with path.with_suffix(".log").open("a") as log:
        return subprocess.Popen([sys.executable, "-c", START, str(path)], env=environment, stdout=log, stderr=log)


def finish(path: Path) -> Path:
    """Runs to the end; the run folder."""
    if start(path).wait() != 0:
        raise RuntimeError(path.with_suffix(".log").read_text())
    return path.with_suffix("")


def rows(run: Path) -> int:
    """How many complete lines metrics.jsonl has."""
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def one(folder: Path, number: int, seed: int, whole: Path) -> dict:
    """One run: killed, looked at, resumed, compared."""
    rng = np.random.default_rng([seed, number])
    target, delay = int(rng.integers(1, STEPS)), float(rng.uniform(0, 0.3))
    path = config(folder, f"run{number}")
    run, process = path.with_suffix(""), start(path)
    while rows(run) < target:
        if process.poll() is not None:
            raise RuntimeError(path.with_suffix(".log").read_text())
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    logged, names = rows(run), [f.name for f in (run / "checkpoints").iterdir()]
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    saving = any("tmp" in name for name in names)
    finish(path)
    same = {
        name: (run / file).read_bytes() == (whole / file).read_bytes()
        for name, file in (("metrics", "metrics.jsonl"), ("parameters", "sae/sae.safetensors"))
    }
    left = [f.name for f in (run / "checkpoints").iterdir() if not f.name.isdecimal()]
    return {
        "run": number,
        "killed": killed,
        "logged": logged,
        "saved": saved,
        "lost": logged - saved,
        "during_save": saving,
        "metrics_equal": same["metrics"],
        "parameters_equal": same["parameters"],
        "leftovers": left,
    }


def table(found: list[dict]) -> str:
    """The results in words and as a table."""
    killed = [row for row in found if row["killed"]]
    inside = [row for row in killed if row["during_save"]]
    equal = sum(row["metrics_equal"] and row["parameters_equal"] for row in found)
    most = {name: max((r["lost"] for r in some), default=0) for name, some in (("in", inside), ("all", killed))}
    outside = max((row["lost"] for row in killed if not row["during_save"]), default=0)
    lines = [
        f"{len(killed)} of {len(found)} runs of {STEPS} steps were killed before they ended, {len(inside)} of them "
        f"during a save. A checkpoint was due every {EVERY} steps. At most {outside} logged steps had to be done "
        f"again when no save was under way, {most['in']} when one was (it is lost, and the one before it counts). "
        f"{equal} of {len(found)} ended with the metrics and the parameters of the run that nobody killed, "
        "byte for byte.",
        "",
        "| run | logged at the kill | newest checkpoint | steps done again | during a save | equal at the end |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        same = "yes" if row["metrics_equal"] and row["parameters_equal"] else "NO"
        during = "yes" if row["during_save"] else "no"
        lines.append(f"| {row['run']} | {row['logged']} | {row['saved']} | {row['lost']} | {during} | {same} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs everything; the exit code is 1 when a run differs or lost more than two intervals."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--runs", type=int, default=20)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--jobs", type=int, default=2, help="runs at a time")
    given = words.parse_args()
    from jhsae import config as cfg
    from jhsae.data import write_array

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(given.seed)
        x = (rng.random((2048, 48)) * (rng.random((2048, 48)) < 0.1)) @ rng.normal(size=(48, 32))
        write_array(folder / "store", x.astype(np.float32), shard_rows=512, chunk_rows=64)
        whole = finish(config(folder, "whole"))
        with ThreadPoolExecutor(given.jobs) as pool:
            found = list(pool.map(lambda n: one(folder, n, given.seed, whole), range(given.runs)))
    about = cfg.provenance()
    about = {
        "seed": given.seed,
        "steps": STEPS,
        "every": EVERY,
        "commit": about["commit"],
        "versions": about["versions"],
    }
    here = Path(__file__).parent
    (here / "results.jsonl").write_text("".join(json.dumps(row | about) + "\n" for row in found))
    readme = (here / "README.md").read_text()
    (here / "README.md").write_text(readme[: readme.index(HEAD) + len(HEAD)] + table(found))
    print(table(found))
    fine = all(r["metrics_equal"] and r["parameters_equal"] and not r["leftovers"] for r in found)
    bound = all(r["lost"] <= (2 * EVERY if r["during_save"] else EVERY) for r in found)
    return 0 if fine and bound and all(r["killed"] for r in found) else 1


if __name__ == "__main__":
    sys.exit(main())
