"""One training step of a flat TopK SAE: SAELens, dictionary_learning and jhsae, interleaved in one process.

    pip install torch==2.13.0 && pip install -e '.[saelens]' && pip install --no-deps dictionary-learning==0.1.0
    python experiments/bench/peers.py [--rounds 15] [--json FILE] [sae.kernel=gather ...]

Same batches, width, k, learning rate and float32 on CPU; ours runs twice, once as SAELens trains and once as
dictionary_learning trains, from the parameters of each, so that the losses must agree. AuxK is off on all sides, then
on with a quarter and with 5 % of the features dead in every step. A ratio is of two times of one round.
Words a.b=c override configs/flat/topk.yaml. Take numbers on a quiet machine: PyTorch's threads spin under contention.
"""

import argparse
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from peer_sides import ALPHA, LIKE_DICTIONARY_LEARNING, DictionaryLearning, Ours, Outcome, SAELens, Setting, Side

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.folders import append_line

PAIRS = {"SAELens": "jhsae as SAELens", "dictionary_learning": "jhsae as dictionary_learning"}
DEAD = (0.0, 0.25, 0.05)  # fractions of the features
AGREE = 1e-5  # relative difference of losses at equal parameters


def main() -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of configs/flat/topk.yaml for ours")
    for name, value in {"embed": 256, "width": 2048, "batch": 4096, "k": 32, "rounds": 15, "warmup": 2}.items():
        top.add_argument(f"--{name}", type=int, default=value)
    top.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    top.add_argument("--dead", type=float, action="append", help="dead fraction, 0: AuxK off; repeated, one row each")
    top.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    top.add_argument("--pause", type=float, default=0.1, help="seconds between steps, for threads that spin to sleep")
    top.add_argument("--json", type=Path, help="append one row per setting")
    arguments = top.parse_intermixed_args()
    try:
        for fraction in arguments.dead or DEAD:
            row = compared(arguments, fraction)
            print(table(row), flush=True)
            if arguments.json:
                append_line(arguments.json, to_json(row))
    except UserError as error:
        print(f"peers: error: {error}", file=sys.stderr)
        return 2
    return 0


def compared(arguments: argparse.Namespace, fraction: float) -> dict[str, Any]:
    """Times, losses and ratios of all sides in one setting."""
    import torch

    if min(arguments.rounds, arguments.warmup) < 1 or not 0 <= fraction <= 1:
        raise UserError(
            f"rounds {arguments.rounds}, warmup {arguments.warmup}, dead {fraction}: expected at least 1 round of "
            "each and a fraction from 0 to 1"
        )
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    batches = [synthetic(rng, arguments.batch, arguments.embed) for _ in range(4)]
    dead = np.sort(rng.permutation(arguments.width)[: round(fraction * arguments.width)])
    setting = Setting(arguments.embed, arguments.width, arguments.batch, arguments.k, arguments.rate, dead)
    sides = built(setting, batches, tuple(arguments.overrides), rng)
    before = os.getloadavg()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    outcomes: dict[str, Outcome] = {}
    names = list(sides)
    for number in range(arguments.warmup + arguments.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            side = sides[name]
            side.prepare()
            time.sleep(arguments.pause)
            start = time.perf_counter()
            side.step(number)
            taken = time.perf_counter() - start
            outcome = side.result()
            check_auxk(name, outcome, setting)
            losses[name].append(outcome.loss)
            outcomes[name] = outcome
            if number >= arguments.warmup:
                seconds[name].append(taken)
    check_losses(losses)
    return {
        "shape": {key: getattr(arguments, key) for key in ("embed", "width", "batch", "k", "rate")},
        "overrides": arguments.overrides,
        "dead": len(dead),
        "rounds": arguments.rounds,
        "milliseconds": {name: spread([1e3 * s for s in values]) for name, values in seconds.items()},
        "ratios": {peer: spread(ratios(seconds[peer], seconds[ours])) for peer, ours in PAIRS.items()},
        "loss_error": {peer: apart(losses[peer], losses[ours]) for peer, ours in PAIRS.items()},
        "losses": losses,
        "auxk": {name: outcome.auxk for name, outcome in outcomes.items()},
        "dead_seen": {name: outcome.dead for name, outcome in outcomes.items()},
        "seconds": seconds,
        "load": {"before": before, "after": os.getloadavg()},
        "torch_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "peers": {name: version(name) for name in ("sae-lens", "dictionary-learning", "torch")},
        **cfg.provenance(),
    }


def synthetic(rng: np.random.Generator, batch: int, embed: int) -> np.ndarray:
    """Sparse sums of 4 x embed directions, of mean norm sqrt(embed), in float32."""
    directions = np.random.default_rng(1).normal(size=(4 * embed, embed))
    codes = rng.random((batch, 4 * embed)) * (rng.random((batch, 4 * embed)) < 0.02)
    x = codes @ directions + 0.1 * rng.normal(size=(batch, embed))
    return (x * embed**0.5 / np.linalg.norm(x, axis=1).mean()).astype(np.float32)


def built(
    setting: Setting, batches: list[np.ndarray], overrides: tuple[str, ...], rng: np.random.Generator
) -> dict[str, Side]:
    """Every side; biases begin at random values, so that a difference in their use would show in the loss."""
    biases = {"b_enc": setting.width, "b_dec": setting.embed}
    start = {name: (0.1 * rng.normal(size=size)).astype(np.float32) for name, size in biases.items()}
    start["b_enc"][setting.dead] = 0
    saelens = SAELens(setting, batches, start)
    peer = DictionaryLearning(setting, batches, start)
    like = (*LIKE_DICTIONARY_LEARNING, *overrides)
    return {
        "SAELens": saelens,
        "dictionary_learning": peer,
        "jhsae as SAELens": Ours(setting, batches, saelens.parameters(), overrides, 1.0),
        "jhsae as dictionary_learning": Ours(setting, batches, peer.parameters(), like, ALPHA),
    }


def check_auxk(name: str, outcome: Outcome, setting: Setting) -> None:
    """Stops where a side computes AuxK although it is off, or for other features than the dead although it is on."""
    wanted = len(setting.dead)
    if (outcome.auxk is not None) != setting.auxk or outcome.dead != wanted:
        raise RuntimeError(
            f"{name}: AuxK is {outcome.auxk} for {outcome.dead} dead features, expected "
            + (f"a number for {wanted}; lower --rate if dead features come back to life" if wanted else "none for 0")
        )


def check_losses(losses: dict[str, list[float]]) -> None:
    """Stops where the first losses, at equal parameters, differ, or a last loss is not of the others' size."""
    for peer, ours in PAIRS.items():
        if (error := apart(losses[peer], losses[ours])["first"]) > AGREE:
            raise RuntimeError(f"the first losses of {peer} and {ours} differ by {error:.1e}, expected {AGREE} at most")
    last = [values[-1] for values in losses.values()]
    if not max(last) < 10 * min(last):
        raise RuntimeError(f"the last losses are {last}, expected numbers of one size")


def apart(peer: list[float], ours: list[float]) -> dict[str, float]:
    """Relative difference of the losses at equal parameters, and after the last step, rounding included."""
    return {word: abs(ours[i] / peer[i] - 1) for word, i in (("first", 0), ("last", -1))}


def ratios(peer: list[float], ours: list[float]) -> list[float]:
    return [a / b for a, b in zip(peer, ours, strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(row: dict[str, Any]) -> str:
    """One setting, as it is printed."""
    shape = ", ".join(f"{key} {value}" for key, value in row["shape"].items())
    auxk = f"AuxK on, {row['dead']:,} features dead" if row["dead"] else "AuxK off"
    load = " to ".join(f"{row['load'][when][0]:.2f}" for when in ("before", "after"))
    peers = ", ".join(f"{name} {number}" for name, number in row["peers"].items())
    lines = [
        f"## {auxk}",
        f"{shape}; {row['rounds']} rounds, load {load}, {row['torch_threads']} torch threads, {row['cpus']} CPUs; "
        f"{peers}, jax {row['versions']['jax']}",
        "",
        "| side | ms per step (least to greatest) | over ours, round by round | loss, first and last | AuxK |",
        "|---|---|---|---|---|",
    ]
    for name, ms in row["milliseconds"].items():
        ratio = row["ratios"].get(name)
        over = "" if ratio is None else "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
        first, last = row["losses"][name][0], row["losses"][name][-1]
        term = "none" if row["auxk"][name] is None else f"{row['auxk'][name]:.4g}"
        time = "{median:.1f} ({min:.1f} to {max:.1f})".format(**ms)
        lines.append(f"| {name} | {time} | {over} | {first:.3f}, {last:.3f} | {term} |")
    errors = "; ".join(
        f"{PAIRS[peer]}: {e['first']:.1e} at equal parameters, {e['last']:.1e} after the last step"
        for peer, e in row["loss_error"].items()
    )
    return "\n".join([*lines, "", f"Relative difference of losses, {errors}.", ""])


if __name__ == "__main__":
    sys.exit(main())
