"""Random against teacher initialisation, with a permuted teacher and parts of the teacher, at the same budget.

    python experiments/phases/initialisation.py [--quick] [--config FILE] [KEY=VALUE ...]

All H-SAEs have the sizes, the steps, the data, the penalties and the total L0 of the settings and differ in `init`
alone; `random` is free from the first step, `random_frozen` has the teacher's schedule, whose first stage freezes the
decoders. A flat TopK SAE of the same steps, data and total L0 stands beside them.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from measure import HeldOut, measure
from phases import Place, options, trained

from jhsae import config as cfg
from jhsae import evals
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train

MAIN = ("teacher", "permuted", "random", "flat")
PARTS = ("random_frozen", "parents_only", "children_only")
UNIT = '{_target_: jhsae.init.UnitDecoder, metric: "${metric}"}'
START = '{{_target_: jhsae.init.FromTeacher, path: "${{teacher}}"{more}}}'


def start(more: str) -> list[str]:
    """The override that starts from the teacher with options."""
    return [f"init=[{START.format(more=more)}, {UNIT}]"]


def variants(seed: int) -> dict[str, list[str]]:
    """Variant -> overrides of the H-SAE's config."""
    return {
        "random": [f"init=[{UNIT}]", "stages.0.freeze=[]"],
        "random_frozen": [f"init=[{UNIT}]"],
        "teacher": [],
        "permuted": start(f", permuted: {seed + 1}"),
        "parents_only": start(", projectors: false, children: false"),
        "children_only": start(", parents: false"),
    }


def main() -> None:
    place = options(__doc__)
    runs(place, [*MAIN, *PARTS])
    common(place)


def runs(place: Place, names: Sequence[str]) -> None:
    """Trains and measures variants, seed after seed."""
    for seed in place.settings.seeds:
        for name in names:
            run(place, name, seed)


def common(place: Place) -> None:
    """What every two seeds of a variant have in common."""
    for name in [*MAIN, *PARTS]:
        for one, other in combinations(place.settings.seeds, 2):
            stability(place, name, one, other)


def folder(place: Place, name: str, seed: int) -> tuple[str, Path]:
    """The config hash and the folder of a finished run."""
    config = place.run_config(name, [], seed, True) if name == "flat" else hierarchical(place, name, seed)
    return cfg.config_hash(config), Path(trained(config))


def hierarchical(place: Place, name: str, seed: int) -> Train:
    """The config of one of the variants."""
    return place.run_config(name, variants(seed)[name], seed)


def run(place: Place, name: str, seed: int) -> None:
    """Trains and measures one run."""
    digest, path = folder(place, name, seed)
    place.record("initialisation", name, seed, digest, lambda: measure(path, held(place)))


def stability(place: Place, name: str, one: int, other: int) -> None:
    """What two seeds of a variant have in common, beside its nulls."""
    made = [folder(place, name, seed) for seed in (one, other)]
    digest = "+".join(hash_ for hash_, _ in made)

    def measured() -> dict:
        loaded = [load_sae(path) for _, path in made]
        found = evals.stability(
            loaded[0][0],
            loaded[1][0],
            (loaded[0][1], loaded[1][1]),
            held(place).store,
            min(5_000, held(place).store.rows),
        )
        top = found.get("parents", found.get("latents"))
        numbers = {"cosine": top["cosine"]["mean"], "cosine_null": mean(top["cosine"]["null"])}
        if "subspaces" in found:
            overlap = found["subspaces"]["overlap"]
            numbers |= {"overlap": overlap["mean"], "overlap_null": mean(overlap["null"])}
        return {"numbers": numbers}

    place.record("stability", name, [one, other], digest, measured)


def mean(draws: list[float | None]) -> float | None:
    """The mean of the defined draws."""
    known = [draw for draw in draws if draw is not None]
    return sum(known) / len(known) if known else None


_HELD: dict[str, HeldOut] = {}


def held(place: Place) -> HeldOut:
    """The held-out data of a place, read once."""
    return _HELD.setdefault(str(place.out), HeldOut(place))


if __name__ == "__main__":
    main()
