"""The settings of the study: sizes, arms and the learning rates that are tried for each."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Size:
    """Sizes of the whole study; `QUICK` only shows that it works."""

    steps: int = 800
    batch: int = 512
    warmup: int = 50
    decay: float = 0.3  # part of the steps
    every: int = 50  # steps between two restarts of dead latents, until 80 % of the run
    width: int = 2048
    layers: tuple[int, ...] = (2, 3)
    l0s: tuple[int, ...] = (16, 8, 24)
    seeds: tuple[int, ...] = (0, 1, 2)
    longer: int = 4  # times the steps, of the arms that are trained longer too
    rows: int = 250_000
    heldout: int = 50_000
    measured: int = 20_000  # of those, half of them for validation
    dead_rows: int = 100_000  # of the training store, beside the test rows: a rare feature is not a dead one
    sequences: int = 64
    worlds: tuple[str, ...] = ("tree_336", "tree_1360", "irregular_335", "dag_336")
    world_steps: int = 1200
    world_rows: int = 2**15
    label_rows: int = 24_000
    rates: int = 2  # of an arm's list at most; 1: no search
    arms: tuple[str, ...] = ()  # those that are run; empty: all


QUICK = Size(
    12, 64, 2, 0.3, 4, 256, (2,), (4,), (0, 1), 2, 4000, 3000, 2000, 1000, 2, ("tiny",), 12, 512, 2000, 1,
    ("topk", "flat_macs", "recommended", "recommended_exact", "tree_2x"),
)  # fmt: skip


class Arm(NamedTuple):
    """One arm.

    Args:
        rates: peaks of the learning rate, further ones are tried beyond the edge at which the best is; of a single one
            there is no search.
        about: what it is, for README.md.
        like: the arm whose rate it takes, instead of `rates`.
    """

    rates: tuple[float, ...]
    about: str
    like: str | None = None


FLAT_RATES, PURSUIT_RATES, HSAE_RATES = (2e-3, 4e-3), (4e-3, 8e-3), (2e-3, 4e-3)  # and one beyond the better
REAL = {
    "topk": Arm(FLAT_RATES, "`flat/topk.yaml`, unit rows"),
    "batchtopk": Arm(FLAT_RATES, "`flat/batchtopk.yaml`, unit rows"),
    "flat_macs": Arm(PURSUIT_RATES, "`pursuit/flat.yaml`, the encoder MACs of recommended"),
    "recommended": Arm((), "`recommended.yaml`, the parameters of topk; `growth` 1.5 at an L0 of 24", like="flat_macs"),
    "recommended_exact": Arm((), "recommended with `ExactL0`, 8 picks more, which leave again", like="flat_macs"),
    "flat_parameters": Arm((), "`pursuit/flat.yaml`, the parameters of topk", like="flat_macs"),
    "matryoshka": Arm(FLAT_RATES, "`flat/matryoshka.yaml`, unit rows; prefixes 1/32 and 1/8 of the width"),
    "jumprelu": Arm(FLAT_RATES, "`flat/jumprelu_quadratic.yaml`, unit rows, thresholds start at 2"),
    "original": Arm(HSAE_RATES, "pole scale_as_published of `ablate/axes.yaml`, the parameters of topk"),
    "corrected": Arm(HSAE_RATES, "pole scale of `ablate/axes.yaml`, the parameters of topk"),
    "recipe": Arm(
        PURSUIT_RATES, "`recipe.yaml`: one pass, 10/16 of the L0 experts, the rest atoms; the parameters of topk"
    ),
    "teacher": Arm(HSAE_RATES, "pole geometry of `ablate/axes.yaml`: starts from a teacher; the parameters of topk"),
    "depth3": Arm((), "recommended with 4 children and 2 grandchildren, the parameters of topk", like="flat_macs"),
    "seeded": Arm((), "recommended, whose first roots and children start from the teacher", like="flat_macs"),
    "screened": Arm((), "recommended; of the roots 16 candidates in each of 6 rounds compete", like="flat_macs"),
    "by_round": Arm((), "the same, and children are candidates as the roots are", like="flat_macs"),
    "one_level_more": Arm((), "recommended, 2 more slots below each row; the parameters of topk", like="flat_macs"),
}
TAUGHT = ("teacher", "seeded")  # read the teacher of their layer
LABELLED = ("topk", "flat_macs", "recommended", "seeded")  # measured beside word classes, and for stability over seeds
LONGER = ("topk", "flat_macs", "recommended")  # trained longer too
MAIN = ("topk", "batchtopk", "flat_macs", "recommended", "recommended_exact")
WORLD = {
    "topk": Arm(FLAT_RATES, "as many latents as true features"),
    "matryoshka": Arm(FLAT_RATES, "the same; prefixes are the true numbers down to each level"),
    "flat": Arm(PURSUIT_RATES, "`pursuit/flat.yaml`, as many rows as true features"),
    "tree_2x": Arm((4e-3,), "`pursuit/world.yaml`, twice as many roots as there are"),
    "tree_4x": Arm((), "four times as many", like="tree_2x"),
    "tree_1x": Arm((), "as many", like="tree_2x"),
    "tree_one_level_more": Arm((), "twice as many, one level more than there is", like="tree_2x"),
    "tree_merging_alone": Arm((), "twice as many; no part but `RestartDead` and `MergeAlike`", like="tree_2x"),
    "tree_no_removal": Arm((), "twice as many, without `RemoveContained`", like="tree_2x"),
    "tree_no_promotion": Arm((), "twice as many, without `PromoteAlike`", like="tree_2x"),
    "tree_no_filling": Arm((), "twice as many, without `FillEmpty`", like="tree_2x"),
}
LEFT_OUT = {  # the parts of resampling that an arm does without; in the first of the worlds that are asked for
    "tree_merging_alone": ("RemoveContained", "PromoteAlike", "FillEmpty"),
    "tree_no_removal": ("RemoveContained",),
    "tree_no_promotion": ("PromoteAlike",),
    "tree_no_filling": ("FillEmpty",),
}
CHILDREN = {"screened": "every pick", "by_round": "every round"}
POLES = {"original": "scale_as_published", "corrected": "scale", "teacher": "geometry"}
FLAT = {"topk": "topk", "batchtopk": "batchtopk", "matryoshka": "matryoshka", "jumprelu": "jumprelu_quadratic"}
TIMES = {"tree_1x": 1, "tree_2x": 2, "tree_4x": 4, "tree_one_level_more": 2, **dict.fromkeys(LEFT_OUT, 2)}
