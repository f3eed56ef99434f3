"""With and without each geometric penalty, one by one; everything else as it is.

    python experiments/phases/penalties.py [--quick] [--config FILE] [KEY=VALUE ...]

The runs `teacher` and `random` of initialisation.py have both penalties of the config, bi-orthogonality at 0.1 and
causal orthogonality at 1. Here one of them is left out, or both, or cross-orthogonality of the router, at 0.1, stands
in place of bi-orthogonality; `random_no_causal` starts at random, because a teacher's start is orthogonal already.
"""

from initialisation import held, variants
from initialisation import runs as initialised
from measure import measure
from phases import Place, options, trained

from jhsae import config as cfg

CAUSAL = ["objective.causal_orthogonality=null", "weights.causal_orthogonality=null"]
CAUSAL += ["stages.0.weights.causal_orthogonality=null"]
BI = ["objective.biorthogonality=null", "weights.biorthogonality=null"]
CROSS = ["objective.cross_orthogonality={_target_: jhsae.losses.CrossOrthogonality}", "weights.cross_orthogonality=0.1"]


def changes(seed: int) -> dict[str, list[str]]:
    """Variant -> overrides of the config."""
    return {
        "no_causal": CAUSAL,
        "no_bi": BI,
        "random_no_causal": [*variants(seed)["random"], *CAUSAL],
        "none": [*CAUSAL, *BI],
        "cross": [*BI, *CROSS],
    }


def main() -> None:
    place = options(__doc__)
    initialised(place, ("teacher", "random"))
    runs(place)


def runs(place: Place) -> None:
    """Trains and measures every variant with every seed."""
    for name in changes(0):
        for seed in place.settings.seeds:
            config = place.run_config(name, changes(seed)[name], seed)
            path = trained(config)
            place.record("penalties", name, seed, cfg.config_hash(config), lambda p=path: measure(p, held(place)))


if __name__ == "__main__":
    main()
