"""The arms of the study: published configs, with the steps, the sizes and the care for dead latents of this study.

An arm is a config of ``jhsae train`` and overrides. Sizes are solved here, none is written down: every arm on the
language model has the parameters of `topk`, but `flat_macs`, which has the encoder multiplications of `recommended`.
A run of `size.steps` steps has the schedules, periods and windows of its config, scaled to that length.
"""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from settings import CHILDREN, FLAT, LEFT_OUT, POLES, TIMES, Size

from jhsae import config as cfg
from jhsae.commands.ablation.config import Ablate
from jhsae.commands.ablation.rates import at_peak
from jhsae.commands.ablation.sizes import budgets
from jhsae.errors import UserError
from jhsae.training.config import Train
from jhsae.worlds import load_world
from jhsae.worlds.summary import summary

STEPS = ("steps", "warmup", "decay", "every", "until", "begin", "step", "dead_window", "feature_sampling_window")
FEWER_SWEEPS, MANY = 1.5, 16  # the growth of trees at an L0 above this one: a third of topk's encoder multiplications
OFF = 0.02  # part by which a solved size may miss its budget
UNIT_ROWS = [
    "sae.code_unit={_target_: jhsae.sae.PlainUnit}",
    "init=[{_target_: jhsae.init.UnitDecoder}]",
    "constraint={_target_: jhsae.constraint.ProjectAndRenormalize}",
]


@cache
def real(arm: str, layer: int, l0: int, size: Size, times: int = 1) -> Train:
    """The config of an arm on the language model, at the rate of its config; paths are relative to the study's folder.

    Args:
        arm: one of `REAL`.
        layer: of the language model.
        l0: features per token, exact or a mean.
        size: sizes of the study.
        times: the study's number of steps.
    """
    base, words = _design(arm, layer, l0, size)
    return _fitted(base, [f"data.store=stores/train-{layer}", *words], size.steps * times, size, arm not in POLES)


def _design(arm: str, layer: int, l0: int, size: Size) -> tuple[str, list[str]]:
    """The published config of an arm and the overrides that make it the arm, its size among them."""
    if arm in FLAT:
        return f"flat/{FLAT[arm]}.yaml", [f"sae.features={size.width}", *UNIT_ROWS, *_own(arm, l0, size.width, size)]
    if arm == "recipe" or arm in POLES:
        base, words = _recipe(l0) if arm == "recipe" else _pole(arm, layer, l0)
        return base, [*words, _solved(arm, base, words, "sae.experts", "parameters", _topk(size))]
    budget = f"sae.budget={{_target_: jhsae.sparsify.MeanL0, k: {l0}}}"
    if arm == "recommended_exact":
        budget = f"sae.budget={{_target_: jhsae.sparsify.ExactL0, k: {l0}, extra: 8}}"
    if arm in ("flat_macs", "flat_parameters"):
        base, words, what = "pursuit/flat.yaml", [budget], arm.removeprefix("flat_")
        target = _topk(size) if what == "parameters" else budgets(real("recommended", layer, l0, size))
        return base, [*words, _solved(arm, base, words, "sae.levels.0", what, target)]
    base, words = "recommended.yaml", [budget]
    if l0 > MANY:
        words.append(f"sae.growth={FEWER_SWEEPS}")
    levels = cfg.load(Train, cfg.find(base)).sae["levels"]
    if arm in ("depth3", "one_level_more"):
        below = [4, 2] if arm == "depth3" else [*levels[1:], 2]
        words.append(f"sae.levels={[levels[0], *below]}")
    if arm in CHILDREN:
        screened = f"_target_: jhsae.sae.Screened, rounds: 6, candidates: 16, children: {CHILDREN[arm]}"
        words.append(f"sae.candidates={{{screened}}}")
    if arm == "seeded":
        words.append(f"init=[{{_target_: jhsae.init.RowsFromTeacher, path: teacher-{layer}}}]")
    return base, [*words, _solved(arm, base, words, "sae.levels.0", "parameters", _topk(size))]


def _own(arm: str, l0: int, width: int, size: Size) -> list[str]:
    """What a flat arm has of its own."""
    if arm == "jumprelu":  # from 2, which about 2 % of the pre-activations exceed, as in experiments/truth
        return [
            "sae.sparsifier.gradient_to=threshold_and_input",
            "sae.sparsifier.initial=2.0",
            "objective.pre_activation={_target_: jhsae.losses.DeadPreActivation}",
            "weights.pre_activation=0.003",
            f"objective.sparsity.target={l0}",
        ]
    prefixes = [f"objective.prefixes.widths={[max(1, width // 32), max(2, width // 8)]}"] if arm == "matryoshka" else []
    return [f"sae.sparsifier.k={l0}", *prefixes]


def _recipe(l0: int) -> tuple[str, list[str]]:
    """The older recipe: of 16 active features 10 are experts and 6 atoms."""
    experts = round(l0 * 10 / 16)
    return "recipe.yaml", [f"sae.route.k={experts}", f"sae.pick.keep={l0 - experts}"]


def _pole(arm: str, layer: int, l0: int) -> tuple[str, list[str]]:
    """A pole of the ablation of both originals, with the number of experts that gives about this total L0."""
    pole = cfg.load(Ablate, cfg.find("ablate/axes.yaml")).poles[POLES[arm]]
    asked = l0 / 2 if arm == "teacher" else l0 * 11 / 16  # 11 experts, of which about 8 are active with an atom each
    words = [*pole.overrides, f"sae.route.k={max(1, round(asked))}"]
    return pole.train, [*words, f"teacher=teacher-{layer}"] if arm == "teacher" else words


@cache
def _topk(size: Size) -> dict[str, float]:
    """What `topk` costs."""
    return budgets(real("topk", size.layers[0], size.l0s[0], size))


def _solved(arm: str, base: str, words: list[str], key: str, what: str, target: dict[str, float]) -> str:
    """The override of a size with which a config has a budget, in which a budget is linear.

    Raises:
        UserError: no size has it.
    """

    def cost(number: int) -> float:
        return budgets(cfg.load(Train, cfg.find(base), [*words, f"{key}={number}"]))[what]

    low, high = cost(128), cost(256)
    number = max(1, round(128 + 128 * (target[what] - low) / (high - low)))
    if abs((reached := cost(number)) / target[what] - 1) > OFF:
        raise UserError(
            f"{arm} has {reached:,.0f} {what} at {key}={number}, expected {target[what]:,.0f} within {OFF:.0%}; write "
            "a larger width, or fewer slots below a row"
        )
    return f"{key}={number}"


@cache
def world(arm: str, name: str, size: Size) -> Train:
    """The config of an arm on a world, whose folder is there; sizes are those of the world.

    Args:
        arm: one of `WORLD`.
        name: of the world.
        size: sizes of the study.
    """
    known, k = load_world(f"worlds/{name}"), world_l0(name)
    hierarchy = known.hierarchy
    counts = [int((hierarchy.levels <= level).sum()) for level in range(int(hierarchy.levels.max()) + 1)]
    words = [
        "data.store=null",
        f"data.live={{_target_: jhsae.worlds.WorldActivations, path: worlds/{name}}}",
        f"sae.embed={known.embed}",
    ]
    below = [max(len(own) for own in hierarchy.below) + 1] * (len(counts) - 1)  # a slot more than there are children
    if arm in FLAT:
        base, own = f"flat/{FLAT[arm]}.yaml", [f"sae.features={counts[-1]}", *UNIT_ROWS, f"sae.sparsifier.k={round(k)}"]
        own += [f"objective.prefixes.widths={counts[:-1]}"] if arm == "matryoshka" else []
    elif arm == "flat":
        base, own = "pursuit/flat.yaml", [f"sae.levels={counts[-1:]}", f"sae.budget.k={k}"]
    else:
        more = [2] if arm == "tree_one_level_more" else []
        base = "pursuit/world.yaml"
        own = [f"sae.levels={[TIMES[arm] * counts[0], *below, *more]}", f"sae.budget.k={k}"]
        if gone := LEFT_OUT.get(arm):
            parts = cfg.load(Train, cfg.find(base)).resampling["parts"]
            stay = [part for part in parts if part["_target_"].rpartition(".")[2] not in gone]
            own.append(f"resampling.parts={json.dumps(stay)}")
    return _fitted(base, [*words, *own], size.world_steps, size, arm not in TIMES)


@cache
def world_l0(name: str) -> float:
    """The L0 that arms are set to: the true one, to one decimal."""
    return round(float(summary(load_world(f"worlds/{name}")).l0), 1)


def _fitted(base: str, words: list[str], steps: int, size: Size, same_schedule: bool) -> Train:
    """A config with this study's batch, length, schedule and restarts of dead latents.

    Args:
        base: a published config.
        words: overrides.
        steps: of the whole run.
        size: sizes of the study.
        same_schedule: whether it has this study's schedule, or its own.
    """
    words = [*words, f"data.batch={size.batch}"]
    found = cfg.load(Train, cfg.find(base), words)
    again = [f"log_every={max(1, steps // 20)}", f"checkpoint_every={steps}", f"dead_window={size.every}"]
    if same_schedule and len(found.stages) == 1:
        shape = f"warmup: {size.warmup}, decay: {round(size.decay * steps)}, steps: {steps}"
        again.append(f"stages.0.learning_rate={{_target_: jhsae.schedule.WarmupDecay, peak: 1.0e-3, {shape}}}")
    if found.sae["_target_"] != "jhsae.sae.PursuitSAE":
        until = steps * 4 // 5
        again.append(f"resampling={{_target_: jhsae.resampling.Resample, every: {size.every}, until: {until}}}")
    elif found.resampling["_target_"] == "jhsae.resampling.RestartDead":
        again.append(f"resampling.every={size.every}")
    return cfg.load(Train, cfg.find(base), [*words, *lengthened(found, steps), *again])


def lengthened(config: Train, steps: int) -> list[str]:
    """Overrides that scale every number of steps in a config, so that the whole run has about `steps`."""
    factor = steps / sum(stage.steps for stage in config.stages)
    tree = cfg.to_dict(config)
    return [f"{path}={max(1, round(value * factor))}" for path, value in _counts(tree, "")]


def _counts(tree: Any, path: str) -> list[tuple[str, int]]:
    """The numbers of steps in plain data, by their dotted keys."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = []
    for key, value in entries:
        inner = f"{path}.{key}" if path else str(key)
        if key in STEPS and isinstance(value, int) and value > 0:
            found.append((inner, value))
        found += _counts(value, inner)
    return found


def at(config: Train, rate: float, seed: int) -> Train:
    """A run of an arm: its peak of the learning rate and its seed, in a folder that its hash names."""
    config = replace(config, stages=at_peak(config, rate), seed=seed, data=replace(config.data, seed=seed))
    return replace(config, out=f"runs/{cfg.config_hash(config)}")
