"""Planted defects: one changed line in each of 20 areas, and whether the default tests fail on it.

    python experiments/mutants/mutants.py [--repo CHECKOUT] [--only N,N] [--json results.jsonl]

A copy of the checkout gets one defect at a time; the tests of its area run as `pytest` runs them by default (without
``-m slow``) and stop at the first failure. `--repo` takes another commit: the changed lines are the same in the commit
before the default run was made shorter, so that both can be compared.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from jhsae import config as cfg

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """One line that occurs once in the package, what replaces it, and the folders or files of tests of its area."""

    area: str
    line: str
    changed: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant(
        "codes",
        "return jnp.sum(self.values != 0, axis=-1)",
        "return jnp.sum(self.values > 0, axis=-1)",
        ("codes",),
    ),
    Mutant(
        "ops: top-k",
        "counts = (keys >= threshold[..., None])",
        "counts = (keys > threshold[..., None])",
        ("ops",),
    ),
    Mutant(
        "ops: router",
        "weight = weight + dot(",
        "weight = 2 * weight + dot(",
        ("ops", "sae", "losses"),
    ),
    Mutant(
        "ops: Gram",
        'gram_b = jnp.einsum("...nd,...ne->...de", b, b)',
        "gram_b = gram_a",
        ("ops", "losses"),
    ),
    Mutant(
        "sparsify",
        "return jnp.where(pre >= self.offset, pre, 0.0)",
        "return jnp.where(pre >= self.offset, pre - self.offset, 0.0)",
        ("sparsify",),
    ),
    Mutant(
        "sparsify: BatchTopK",
        "moved = (1 - self.threshold_rate) * threshold",
        "moved = threshold",
        ("sparsify",),
    ),
    Mutant(
        "losses: JumpReLU",
        "return jnp.mean(2.0 / self.target * (",
        "return jnp.mean(1.0 / self.target * (",
        ("losses",),
    ),
    Mutant(
        "losses: L1",
        "return jnp.sum(jnp.abs(values)) / values.shape[0]",
        "return jnp.mean(jnp.abs(values))",
        ("losses",),
    ),
    Mutant(
        "constraint",
        "return grads - jnp.sum(grads * normal, axis=-1, keepdims=True) * normal",
        "return grads",
        ("constraint", "optimizer"),
    ),
    Mutant(
        "schedule",
        "up = self.start + (self.peak - self.start) * t / max(self.warmup, 1)",
        "up = self.start + (self.peak - self.start) * (t + 1) / max(self.warmup, 1)",
        ("schedule",),
    ),
    Mutant(
        "resampling",
        "done = step + 1",
        "done = step",
        ("resampling", "revival"),
    ),
    Mutant(
        "SAE: hierarchical",
        "return self.experts * (1 + self.atoms)",
        "return self.experts * self.atoms",
        ("sae",),
    ),
    Mutant(
        "SAE: gated",
        "codes = Codes(jnp.where(gate > 0, magnitude, 0.0)",
        "codes = Codes(jnp.where(magnitude > 0, magnitude, 0.0)",
        ("sae", "interop"),
    ),
    Mutant(
        "normaliser",
        "return x_hat * token.scale + fitted(self.mean)",
        "return x_hat * token.scale",
        ("data", "normalize"),
    ),
    Mutant(
        "evaluation",
        "centred = jnp.sum((x - mean) ** 2, axis=-1)",
        "centred = jnp.sum(x**2, axis=-1)",
        ("evals",),
    ),
    Mutant(
        "geometry",
        "has_parent = np.asarray(jnp.any(router != 0, axis=-1))",
        "has_parent = np.ones(len(router), bool)",
        ("evals",),
    ),
    Mutant(
        "language model",
        "kept = jnp.clip((turns - self.low_freq_factor)",
        "kept = jnp.clip((turns - self.high_freq_factor)",
        ("lm",),
    ),
    Mutant(
        "teacher",
        "return positive.mean(0) - parent",
        "return positive.mean(0)",
        ("teacher",),
    ),
    Mutant(
        "checkpoints",
        "return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)",
        "return jnp.sum(bits, dtype=jnp.uint32)",
        ("checkpoints",),
    ),
    Mutant(
        "interop: fold",
        "b_enc = b_enc if sae.apply_b_dec_to_input else b_enc - W_enc @ shift",
        "b_enc = b_enc - W_enc @ shift",
        ("interop",),
    ),
    Mutant(
        "configs",
        "if len(keys) > DEPTH:",
        "if len(keys) > 10**6:",
        ("config", "hostile", "bounded"),
    ),
    Mutant(
        "usage",
        "full = self.steps + 1 >= window",
        "full = self.steps >= window",
        ("usage", "step"),
    ),
]


def test_files(repo: Path, words: tuple[str, ...]) -> list[str]:
    """The test files in a folder of that name, or with that word in their own, the shortest path first."""
    files = [f for f in sorted((repo / "tests").rglob("test_*.py")) if "golden" not in f.parts]
    found = [f for f in files if any(word in f.parent.parts or word in f.stem.split("_") for word in words)]
    return [str(f.relative_to(repo)) for f in found]


def planted(repo: Path, mutant: Mutant, copy: Path) -> None:
    """A copy of the tracked files with the defect. ValueError where its line is not there once."""
    listed = subprocess.run(["git", "ls-files"], cwd=repo, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (repo / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, copy / name)
    holding = [f for f in (copy / "jhsae").rglob("*.py") if mutant.line in f.read_text()]
    if len(holding) != 1 or holding[0].read_text().count(mutant.line) != 1:
        raise ValueError(f"{mutant.area}: {mutant.line!r} occurs in {len(holding)} files, expected once")
    holding[0].write_text(holding[0].read_text().replace(mutant.line, mutant.changed))


def run(repo: Path, mutant: Mutant) -> dict:
    """Whether a default test of the area fails, and which one."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        planted(repo, mutant, copy)
        environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}"}
        words = [sys.executable, "-m", "pytest", "-x", "-n", "0", "--no-header", "-rf", *test_files(copy, mutant.tests)]
        done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True)
    failed = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{mutant.area}: pytest ended with code {done.returncode}:\n{done.stdout[-2000:]}")
    return {"area": mutant.area, "changed": mutant.changed, "caught": done.returncode == 1, "by": failed[:160]}


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--repo", type=Path, default=ROOT, help="the checkout (default: this one)")
    top.add_argument("--only", default="", help="numbers of mutants, from 0")
    top.add_argument("--json", type=Path, help="append a row per mutant")
    arguments = top.parse_args()
    chosen = [int(n) for n in arguments.only.split(",") if n] or list(range(len(MUTANTS)))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=arguments.repo, capture_output=True, text=True).stdout
    caught = 0
    for number in chosen:
        row = run(arguments.repo, MUTANTS[number]) | {"commit": commit.strip()}
        caught += row["caught"]
        print(f"{number:2d} {'caught  ' if row['caught'] else 'SURVIVED'} {row['area']}: {row['by']}", flush=True)
        if arguments.json:
            with arguments.json.open("a") as out:
                out.write(json.dumps(row | {"versions": cfg.provenance()["versions"]}) + "\n")
    print(f"{caught} of {len(chosen)} caught")


if __name__ == "__main__":
    main()
