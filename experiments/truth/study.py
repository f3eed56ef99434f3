"""Trains every arm on a world whose features are known, and compares its latents with them; one row for each run.

    python experiments/truth/study.py --json experiments/truth/results.jsonl [--only ARM] [--seeds 0,1,2] [--quick]

A run that has a row already is not run again, so the command may be stopped and goes on where it was. For every arm the
learning rate is chosen first, at one L0 and one seed, by explained variance on validation draws; then all L0 and seeds
run at it. Seeds vary initial parameters and the order of the rows, not the world. `table.py` makes the tables.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from arms import (
    ARMS,
    FLAT,
    HIERARCHICAL,
    NARROW,
    QUICK,
    STARTED,
    Peak,
    Size,
    config,
    encoder_products,
    kind,
    started,
    swept_at,
)

import jhsae
from jhsae import config as cfg
from jhsae.commands import world as world_verb
from jhsae.commands.ablation.rates import best_rate as best_of_rates
from jhsae.data import AbstractNormalizer, ArrayRows
from jhsae.evals.fidelity import fidelity
from jhsae.evals.truth import truth
from jhsae.evals.world import draws
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.sae import AbstractSAE
from jhsae.schedule import AbstractSchedule
from jhsae.training.config import Train
from jhsae.training.recipe import Recipe, build_sae
from jhsae.worlds import World, WorldActivations, WorldConfig, load_world

VALIDATION, TEST = 1, 0  # seeds of held-out draws; TEST is the default of `on_world`
PARTS = ("levels", "roots", "tree", "edges", "absorption", "hedging", "violations", "siblings")
OFF_L0 = 0.15  # a rate at which L0 is further from what it is set to is not taken
FITTED = 2**14  # rows that normalisers are fitted on


Batch = tuple[np.ndarray, np.ndarray]  # activations, true magnitudes


class Run(NamedTuple):
    """What one row is about."""

    arm: str
    l0: int
    rate: float
    seed: int


class Data(NamedTuple):
    """The world, the rows that are trained on, and held-out draws."""

    world: World
    pool: np.ndarray
    validation: list[Batch]
    test: list[Batch]


def main() -> None:
    """Runs what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file; rows are appended")
    parser.add_argument("--only", choices=ARMS, help="one arm")
    parser.add_argument("--seeds", type=lambda s: [int(i) for i in s.split(",")], default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a tiny world and a few steps: does it work?")
    parser.add_argument("--out", type=Path, default=Path("runs/truth"), help="folder of the world and its rows")
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(arguments.out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    provenance = cfg.provenance()  # of the code that runs, whatever is edited meanwhile
    size = QUICK if arguments.quick else Size()
    data = prepared(size, arguments.out / ("quick" if arguments.quick else "whole"))
    arms = ARMS if arguments.only is None else (arguments.only,)
    for run in todo(arms, arguments.seeds, size, arguments.json):
        print(json.dumps(done(run, size, data, arguments.json, provenance)["short"]), flush=True)


def prepared(size: Size, out: Path) -> Data:
    """The world, made once; its rows are those that ``jhsae train`` with data.seed=0 would read."""
    folder = world_verb.make(cfg.load(WorldConfig, cfg.find(size.world), [f"out={out / 'world'}"]))
    world, file = load_world(folder), out / "pool.npy"
    if not file.exists():
        block = min(4096, size.pool)
        stream = WorldActivations(str(folder), mesh=make_mesh(MeshShape(), devices=1)).batches(block, 0)
        np.save(file, np.concatenate([np.asarray(next(stream)) for _ in range(size.pool // block)]))
    held = [
        [(np.asarray(x), np.asarray(codes)) for x, codes in draws(world, rows, seed)]
        for rows, seed in ((size.validation, VALIDATION), (size.rows, TEST))
    ]
    return Data(world, np.load(file), *held)


def todo(arms: tuple[str, ...], seeds: list[int], size: Size, file: Path) -> Iterator[Run]:
    """Runs without a row, the most important first: rates (of the arm that a variant is of), one L0, the others."""
    wide = [arm for arm in (*FLAT, *HIERARCHICAL) if arm in arms]
    true, narrow = [arm for arm in STARTED if arm in arms], [arm for arm in NARROW if arm in arms]
    others = [l0 for l0 in size.l0s if l0 != size.swept]

    def swept(names: list[str]) -> Iterator[Run]:
        for arm in names:
            for i, rate in enumerate(size.rates):
                if i < 2 or not fell(arm, size.rates[i - 2 : i], size, file):
                    yield Run(arm, swept_at(arm, size), rate, seeds[0])

    def final(names: list[str], l0s: list[int], seeds: list[int]) -> Iterator[Run]:
        for l0 in l0s:
            for seed in seeds:
                yield from (Run(arm, l0, best_rate(arm, size, file), seed) for arm in names)

    def all_of_them() -> Iterator[Run]:
        yield from swept(list(dict.fromkeys(map(kind, arms))))
        yield from final([*true, *wide, *narrow], [size.swept], seeds[:1])
        yield from final(wide, others[:1], seeds[:1])
        yield from final(wide, [size.swept], seeds[:2])
        yield from final(wide, others, seeds[:1])
        yield from final(wide, [size.swept], seeds)
        yield from final([*true, *narrow], [size.swept], seeds)
        yield from final(wide, others, seeds)
        yield from final(narrow, others, seeds)

    for run in all_of_them():
        if not any(Run(*(row[name] for name in Run._fields)) == run for row in rows_of(file)):
            yield run


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows there are."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def fell(arm: str, rates: tuple[float, ...], size: Size, file: Path) -> bool:
    """Whether explained variance fell from the first of two rates to the second: then larger ones are left out."""
    found = {row["rate"]: row["validation_ev"] for row in swept_rows(arm, size, file)}
    first, second = (found.get(rate) for rate in rates)
    return first is not None and second is not None and second < first


def swept_rows(arm: str, size: Size, file: Path) -> list[dict[str, Any]]:
    """The rows of the sweep of an arm's rate."""
    found = [row for row in rows_of(file) if row["arm"] == arm and row["l0"] == swept_at(arm, size)]
    return [row for row in found if row["seed"] == found[0]["seed"]]


def best_rate(arm: str, size: Size, file: Path) -> float:
    """The rate of largest explained variance on validation draws; variants of an arm take its rate."""
    return best_of(swept_rows(kind(arm), size, file))["rate"]


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of largest explained variance on validation draws, of those that keep their L0 where any does."""
    found = {row["rate"]: (row["validation_ev"], row["metrics"]["l0"]) for row in rows}
    best = best_of_rates(found, float(rows[0]["l0"]), OFF_L0)
    return next(row for row in rows if row["rate"] == best)


def done(run: Run, size: Size, data: Data, file: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """Trains and evaluates a run and appends its row."""
    start = time.perf_counter()
    settings = config(*run, size, data.world.embed)
    normalizer = cfg.build(settings.data.normalize, AbstractNormalizer).fit(ArrayRows(data.pool[:FITTED]))
    sae = trained(settings, normalizer, data, run.arm)
    seconds = time.perf_counter() - start
    row = {
        **run._asdict(),
        "config_hash": cfg.config_hash(settings),
        **provenance,
        "steps": size.steps,
        "batch": size.batch,
        "seconds": seconds,
        "encoder_products": encoder_products(settings),
        "validation_ev": measured(sae, normalizer, data.validation)["ev_r2"],
        **compared(sae, normalizer, data, size),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")
    short = {name: row["metrics"][name] for name in ("ev_r2", "l0", "mcc", "f1", "dead_latents")}
    return row | {"short": run._asdict() | short | {"seconds": seconds, "all": time.perf_counter() - start}}


def trained(settings: Train, normalizer: AbstractNormalizer, data: Data, arm: str) -> AbstractSAE:
    """The SAE of a config, trained as ``jhsae train`` does, but on rows that were drawn once for all runs."""
    recipe = Recipe.of(settings, normalizer)
    sae = build_sae(settings, jax.random.key(settings.seed))
    if arm in STARTED:
        sae = started(arm, sae, data.world)
    weights = {
        name: cfg.build(slot, AbstractSchedule) if isinstance(slot, dict) else slot
        for name, slot in recipe.weights.items()
    }
    sae, _ = jhsae.fit(
        sae,
        data.pool,
        stages=[replace(stage, learning_rate=peaked(stage.learning_rate)) for stage in recipe.stages],
        batch=settings.data.batch,
        objective=recipe.terms,
        weights=weights,
        constraint=recipe.constraint,
        normalizer=normalizer,
        optimizer=recipe.optimizer,
        resampling=recipe.resampling,
        dead_window=recipe.dead_window,
        feature_sampling_window=recipe.feature_sampling_window,
        log_every=recipe.steps,
        seed=settings.seed,
    )
    return sae


def peaked(slot: dict[str, Any]) -> Peak:
    """The schedule of a slot; runs that differ in its peak alone share a compiled program."""
    return Peak(cfg.build(slot | {"peak": 1.0}, AbstractSchedule), jnp.asarray(slot["peak"], jnp.float32))


def measured(sae: AbstractSAE, normalizer: AbstractNormalizer, held: list[Batch]) -> dict[str, Any]:
    """The metrics of `fidelity`."""
    mean = sum(x.sum(axis=0, dtype=np.float64) for x, _ in held) / sum(len(x) for x, _ in held)
    return fidelity(sae, normalizer, (x for x, _ in held), mean)[0]


def compared(sae: AbstractSAE, normalizer: AbstractNormalizer, data: Data, size: Size) -> dict[str, Any]:
    """The metrics that `jhsae.evals.world.on_world` gives, of the same draws, which are kept between runs here."""
    metrics = measured(sae, normalizer, data.test)
    found = truth(sae, normalizer, data.world.features, data.world.hierarchy, data.test, permutations=size.permutations)
    numbers = {name: value for name, value in found.items() if not isinstance(value, dict | list)}
    parts = {name: found[name] for name in PARTS}
    return {"metrics": {**{k: v for k, v in metrics.items() if k != "density"}, **numbers}, "parts": parts}


if __name__ == "__main__":
    main()
