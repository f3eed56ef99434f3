"""One job: trains its run, or takes the finished one, and measures it on the held-out rows."""

import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import arms
import equinox as eqx
import numpy as np
from jaxtyping import Array
from jobs import DIVERGED, Job, of_runs
from settings import Size

from jhsae import config as cfg
from jhsae import evals
from jhsae.commands.ablation.config import Ablate, Pole
from jhsae.commands.ablation.heldout import HeldOut, held_out
from jhsae.commands.ablation.sizes import Trial, nearest, next_size
from jhsae.data import AbstractNormalizer, Store
from jhsae.evals.beside_null import Summary
from jhsae.evals.fidelity import fidelity
from jhsae.features.firings import firing_table
from jhsae.features.origin import language_model
from jhsae.sae import AbstractSAE, PursuitSAE
from jhsae.sparsify import JumpReLU, Threshold
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train
from jhsae.training.loop import DivergedError
from jhsae.training.run import train
from jhsae.training.timing import timing

MATCHED = ("cosine", "f1", "correlation")  # of the features that two seeds have in common
LM = "embedded"
AT_ONCE = 4096  # rows that are encoded at a time
NEAR = 0.002  # part by which a threshold may miss its L0 on validation rows


@cache
def settings(job: Job, size: Size) -> Train:
    """The config of the run of a job."""
    if job.part == "worlds":
        return arms.at(arms.world(job.arm, job.place, size), job.rate, job.seed)
    return arms.at(arms.real(job.arm, int(job.place), int(job.l0), size, job.times), job.rate, job.seed)


def done(job: Job, size: Size, provenance: dict[str, Any]) -> dict[str, Any]:
    """The row of a job.

    Args:
        job: with its rate.
        size: sizes of the study.
        provenance: of the code that runs.
    """
    start = time.perf_counter()
    config = settings(job, size)
    row = {**job._asdict(), "config_hash": cfg.config_hash(config), **provenance}
    try:
        measured = _run(job, size) if job.part in ("real", "worlds") else _extra(job, size)
    except DivergedError as error:
        measured = {"metrics": {}, DIVERGED: str(error)}
    return row | measured | {"seconds": time.perf_counter() - start}


def _trained(job: Job, size: Size) -> Path:
    """The folder of a finished run; its checkpoints are deleted."""
    folder = Path(train(settings(job, size)))
    if (folder / "checkpoints").exists():
        shutil.rmtree(folder / "checkpoints")
    return folder


def _run(job: Job, size: Size) -> dict[str, Any]:
    """What a run is measured by: on validation rows what its rate is chosen by, on test rows everything."""
    folder, held, config = _trained(job, size), held_out_of(job.part, job.place, size), settings(job, size)
    trained, normalizer, about = load_sae(folder)
    held.check(trained, about, folder)
    sae, before = matched(trained, normalizer, held, job.l0)
    validation = held.numbers(sae, normalizer, "validation")["metrics"]
    test, clock, threshold = held.numbers(sae, normalizer, "test"), timing(folder), thresholds(sae)
    if clock["tokens_per_second"]:
        clock["step_seconds"] = config.data.batch / clock["tokens_per_second"]
    test["metrics"] |= clock | {
        "threshold": None if threshold is None else float(np.mean(threshold)),
        "l0_as_trained": before,
    }
    if job.part == "real":
        test["metrics"]["dead_in_training_rows"] = dead_of(sae, normalizer, job.place, size)
    steps = sum(stage.steps for stage in config.stages)
    return test | {"validation": {name: validation[name] for name in ("ev_r2", "l0")}, "steps": steps}


def matched(sae: AbstractSAE, normalizer: AbstractNormalizer, held: HeldOut, l0: float) -> tuple[AbstractSAE, float]:
    """The SAE with the threshold that gives it an L0 on validation rows, and the L0 that it had there before.

    A running threshold of training misses the L0 that it is set to by some per cent on held-out rows. Thresholds of
    single latents are all multiplied by one factor; an SAE without a threshold stays as it is.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        held: held-out rows.
        l0: that is wanted.
    """
    rows = next(held.batches("validation"))
    old = thresholds(sae)

    def scaled(factor: float) -> AbstractSAE:
        return sae if old is None else eqx.tree_at(thresholds, sae, old * factor)

    def l0_at(factor: float) -> float:
        return fidelity(scaled(factor), normalizer, [rows], held.mean("validation"))[0]["l0"]

    tried: list[Trial] = [(1.0, l0_at(1.0))]
    while old is not None and abs(tried[-1][1] / l0 - 1) > NEAR:
        factor = next_size(tried, 1.0, l0, "weights.threshold")  # like a weight, it lowers the L0
        if factor is None:
            break
        tried.append((factor, l0_at(float(factor))))
    return scaled(float(nearest(tried, l0)[0])), tried[0][1]


def dead_of(sae: AbstractSAE, normalizer: AbstractNormalizer, layer: str, size: Size) -> float:
    """The part of the features that are on none of the first `size.dead_rows` rows that an SAE was trained on."""
    store = Store.open(f"stores/train-{layer}")
    batches = (store.read(at, min(at + AT_ONCE, size.dead_rows)) for at in range(0, size.dead_rows, AT_ONCE))
    return fidelity(sae, normalizer, batches, np.zeros(store.embed))[0]["dead"]


def thresholds(sae: AbstractSAE) -> Array | None:
    """The threshold of a pursuit, or those of a flat SAE; None for one that selects a number of latents."""
    rule = sae.budget if isinstance(sae, PursuitSAE) else sae.sparsifiers[0]
    return rule.threshold if isinstance(rule, Threshold | JumpReLU) else None


def _extra(job: Job, size: Size) -> dict[str, Any]:
    """Latents beside word classes, or two seeds beside each other; every number with its null."""
    store, rows = Store.open(f"stores/heldout-{job.place}"), size.label_rows
    loaded = [load_sae(_trained(run, size))[:2] for run in of_runs(job, size)]
    summary = Summary()
    if job.part == "stability":
        (first, own), (second, other) = loaded
        for group, found in evals.stability(first, second, (own, other), store, rows).items():
            for name in MATCHED:
                summary.add(found[name], f"{name}_{group}")
            summary.numbers[f"above_0.9_{group}"] = found["above_0.9"]
        return {"metrics": summary.numbers}
    ((sae, normalizer),) = loaded
    labels = evals.wordnet_labels(language_model(LM, store).tokenizer).on(store.index(0, rows))
    pure = evals.purity(firing_table(sae, normalizer, store, rows), labels, sae.tree)["groups"]
    for group, metrics in pure.items():
        for name, found in metrics.items():
            summary.add(found, f"{name}_{group}")
    return {"metrics": summary.numbers}


@cache
def held_out_of(part: str, place: str, size: Size) -> HeldOut:
    """The rows of a place, those for validation and those for the test apart."""
    poles = {"arm": Pole("flat/topk.yaml")}  # an ablation's held-out rows do not depend on its arms
    if part == "worlds":
        return held_out(Ablate(out="rows", poles=poles, truth=f"worlds/{place}", rows=size.world_rows))
    store, rows = f"stores/heldout-{place}", size.measured
    return held_out(
        Ablate(out="rows", poles=poles, store=store, lm=LM, rows=rows, sequences=size.sequences, validation=0.5)
    )
