"""Hostile configs of ``jhsae train``: the shipped ones at a small size, each with a few changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from artifacts import teacher
from basics import EMBED
from cases import SEED, Case, inside
from mutations import WILD, mutated_bytes, mutated_number, mutated_tree, pick
from outcomes import Outcome, judged

from jhsae import config as cfg
from jhsae.__main__ import main
from jhsae.commands import train
from jhsae.files.folders import open_folder
from jhsae.training.config import Train
from jhsae.training.run import prepare
from jhsae.training.run_folder import check_owner, finished

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = (
    "scale.yaml", "geometry.yaml", "topk.yaml", "quickstart/scale.yaml", "quickstart/geometry.yaml",
    "quickstart/topk.yaml", "reference/mixture_of_experts_v2.yaml", "reference/polytope.yaml", "flat/batchtopk.yaml",
    "flat/gated.yaml", "flat/jumprelu.yaml", "flat/jumprelu_quadratic.yaml", "flat/jumprelu_tanh.yaml",
    "flat/matryoshka.yaml", "flat/standard.yaml", "flat/standard_annealed.yaml", "flat/topk.yaml",
)  # fmt: skip
SMALL = {
    "embed": EMBED, "features": 12, "experts": 2, "sub": 2, "atoms": 2, "batch": 8, "k": 1, "widths": [4, 8],
    "target": 4.0,
}  # fmt: skip
PARTS = (
    "jhsae.sae.FlatSAE", "jhsae.sae.GatedSAE", "jhsae.sae.HierarchicalSAE", "jhsae.sparsify.TopK",
    "jhsae.sparsify.ReLU", "jhsae.sparsify.BatchTopK", "jhsae.sparsify.JumpReLU", "jhsae.losses.SquaredError",
    "jhsae.losses.AuxK", "jhsae.losses.L1All", "jhsae.schedule.Linear", "jhsae.schedule.Constant",
    "jhsae.init.UnitDecoder", "jhsae.init.FromTeacher", "jhsae.data.CenterScale", "jhsae.data.Whiten",
    "jhsae.metric.Euclidean", "jhsae.resampling.Resample", "jhsae.optimizer.adam", "jhsae.constraint.Renormalize",
    "jhsae.activations.live.LiveActivations",
    "jhsae.sae", "jhsae.no.Such", "jhsae.sae.AbstractSAE", "os.system", "builtins.eval",
    "numpy.load", "", "FlatSAE",
)  # fmt: skip
CONFIG_WILD = (
    *WILD, "${out}", "${sae}", "${sae.embed}", "${no.such}", "${rsqrt:0}", "${rsqrt:-1}", "${rsqrt:a}",
    "${rsqrt:${seed}}", "${oc.env:HOME}", "${env:HOME}", "${", "${${out}}", "???", "1e-3", "-1e-3", "yes", "~",
    "!!python/name:os.system", *({"_target_": part} for part in PARTS),
    *({"_target_": part, "k": -1, "steps": 0} for part in PARTS[:12]),
    [{"name": "a", "steps": 1, "learning_rate": 0.1}], [{"name": "a", "steps": -1, "learning_rate": -1}],
)  # fmt: skip
WORDS = (
    "=", "a", "a=", "=1", "sae=", "sae={", "out=[", "sae.embed=1e3", "stages.9.steps=1", "stages.-1.steps=1",
    "x.y.z=1", "sae._target_=os.system", "a" * 5000, "seed=${seed}", "data={}", "stages=[]", "\u202e=1",
    "seed=!!int x",
)  # fmt: skip


def small(tree: Any) -> Any:
    """A resolved config with sizes of `SMALL`."""
    if isinstance(tree, dict):
        return {key: SMALL[key] if key in SMALL and value is not None else small(value) for key, value in tree.items()}
    if isinstance(tree, str) and tree.startswith("teachers/"):
        return "teacher"
    return [small(value) for value in tree] if isinstance(tree, list) else tree


class Configs:
    """The shipped configs at a small size, and the store and teacher that they read, in the folder `made`."""

    def __init__(self, made: Path):
        made.mkdir(parents=True, exist_ok=True)
        self._made = made
        with inside(made):
            teacher()
        self.trees = {file: self._tree(file) for file in FILES}

    def _tree(self, file: str) -> dict[str, Any]:
        words = ["data.store=store", "out=out/run"] + ["teacher=teacher"] * ("geometry" in file)
        return small(cfg.to_dict(cfg.load(Train, CONFIGS / file, words)))

    def run(self, number: int, place: Path) -> Case:
        """Case `number`, in the empty folder `place`."""
        rng = np.random.default_rng([SEED, 1, number])
        file = FILES[number % len(FILES)]
        tree, changes = self.trees[file], []
        for _ in range(pick(rng, (1, 1, 1, 2, 3))):
            tree, words = mutated_number(tree, rng) if rng.integers(3) == 0 else mutated_tree(tree, rng, CONFIG_WILD)
            changes.append(words)
        text = written(tree)
        if rng.integers(12) == 0:
            text, words = mutated_bytes(text, rng)
            changes.append(words)
        overrides = [pick(rng, WORDS)] if rng.integers(12) == 0 else []
        if rng.integers(12) == 0:
            path, value = (
                pick(rng, ("seed", "sae.embed", "stages.0.steps", "data.batch", "out")),
                pick(rng, CONFIG_WILD),
            )
            overrides.append(f"{path}={value}")
        change = "; ".join(changes + [word[:60] for word in overrides])
        return Case("config", file, change, self._judged(text, overrides, place))

    def untouched(self, file: str, place: Path) -> Outcome:
        """The same with nothing changed."""
        return self._judged(written(self.trees[file]), [], place)

    def _judged(self, text: bytes, overrides: list[str], place: Path) -> Outcome:
        for name in ("store", "teacher"):
            (place / name).symlink_to(self._made / name)
        (place / "train.yaml").write_bytes(text)
        with inside(place):
            return judged(command("train.yaml", *overrides), place, place / "out")


def written(tree: Any) -> bytes:
    """A config as YAML."""
    return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")


def command(*words: str) -> Callable[[], int]:
    """``jhsae train`` up to where it would begin to compute."""

    def only_check(config: Train) -> None:
        check_owner(open_folder(config.out), config)
        finished(open_folder(config.out))
        prepare(config)

    def run() -> int:
        whole, train.run = train.run, only_check
        try:
            return main(["train", *words])
        finally:
            train.run = whole

    return run
