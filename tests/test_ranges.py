"""A range that is stated in an annotation is checked in a config and in a constructor, by one sentence."""

import json
import math
from dataclasses import fields
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Le, MinLen

from jhsae import config, losses, schedule, sparsify
from jhsae.activations.config import Harvest, Source
from jhsae.commands import table
from jhsae.commands.evaluate import Evaluate
from jhsae.config.schema import is_config
from jhsae.data import LayerNorm, Standardize, UnitNorm
from jhsae.errors import UserError
from jhsae.init import ScaleEncoder
from jhsae.optimizer import adam
from jhsae.ranges import Count, Fraction, Infinite, Positive, Ranged, hints_of, ranged, violation
from jhsae.resampling import Resample
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.training.config import StageConfig, Train

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("value", "hint", "sentence"),
    [
        (-3, Count, "k is -3, expected at least 1"),
        (2**31, Count, "k is 2147483648, expected at least 1 and at most 2,147,483,647"),
        (2.0, Count, "k is 2.0 (float), expected a whole number of at least 1"),
        (True, Count, "k is True (bool), expected a whole number of at least 1"),
        ("3", Count, "k is '3' (str), expected a whole number of at least 1"),
        (None, Count, "k is None (NoneType), expected a whole number of at least 1"),
        (0, Count | None, "k is 0, expected at least 1"),
        ("x", Count | None, "k is 'x' (str), expected a whole number of at least 1 or null"),
        (2**63, int, "k is 9223372036854775808, expected a number that fits 64 bits"),
        (math.nan, float, "k is nan, expected a finite number that fits float32"),
        (math.inf, Positive, "k is inf, expected a finite number that fits float32"),
        (1e39, float, "k is 1e+39, expected a finite number that fits float32"),
        (math.nan, Any, "k is nan, expected a finite number that fits float32"),
        (math.nan, Annotated[float, Infinite()], "k is nan, expected a finite number that fits float32"),
        (1.5, Fraction, "k is 1.5, expected at least 0 and at most 1"),
        (3, Annotated[int, Interval(gt=3, lt=5)], "k is 3, expected more than 3 and less than 5"),
        ([1, 0], list[Count], "k.1 is 0, expected at least 1"),
        ([], Annotated[list[int], MinLen(1)], "k is [], expected at least one entry"),
        ((1, 2, 3), tuple[int, int], "k is (1, 2, 3), expected 2 entries"),
        ({"a": {"b": -1.0}}, dict[str, dict[str, Positive]], "k.a.b is -1.0, expected more than 0"),
        ("", Annotated[str, MinLen(1)], "k is '', expected a text that is not empty"),
        ("c", Literal["a", "b"], "k is 'c' (str), expected 'a' or 'b'"),
        (3, sparsify.AbstractSparsifier, "k is 3 (int), expected AbstractSparsifier"),
    ],
)
def test_what_is_wrong_is_said(value, hint, sentence):
    assert violation(value, hint, "k") == sentence


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, Count),
        (np.int64(3), Count),
        (np.float32(0.5), Fraction),
        (1, Fraction),
        (None, Count | None),
        (math.inf, Annotated[float, Infinite()]),
        (jnp.float32(-1), Positive),  # an array: its value may not be known
        ({"_target_": "x", "k": -1}, dict[str, Any]),  # a slot: its class says what k may be
        ({}, dict[str, Positive]),
        ("b", Literal["a", "b"]),
        (KEY, Any),
    ],
)
def test_what_is_right_passes(value, hint):
    assert violation(value, hint) is None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: sparsify.TopK(k=-1), "TopK: k is -1, expected at least 1"),
        (lambda: sparsify.BatchTopK(0.0), "BatchTopK: k is 0.0, expected more than 0"),
        (lambda: sparsify.BatchTopK(2.0, math.nan), "BatchTopK: threshold_rate is nan"),
        (lambda: sparsify.JumpReLU(bandwidth=0.0), "JumpReLU: bandwidth is 0.0, expected more than 0"),
        (lambda: schedule.Linear(0.0, math.inf, 3), "Linear: end is inf"),
        (lambda: losses.AuxK(0), "AuxK: k is 0, expected at least 1"),
        (lambda: losses.Objective({"a": losses.SquaredError()}, {"a": -1.0}), "Objective: weights.a is -1.0, expec"),
        (lambda: UnitNorm(eps=-1.0), "UnitNorm: eps is -1.0, expected at least 0"),
        (lambda: LayerNorm(eps=math.nan), "LayerNorm: eps is nan"),
        (lambda: Standardize(rows=1), "Standardize: rows is 1, expected at least 2"),
        (lambda: ScaleEncoder(0.0), "ScaleEncoder: factor is 0.0, expected more than 0"),
        (lambda: Resample(-1, 5), "Resample: every is -1, expected at least 1"),
        (lambda: adam(b1=1.5), "adam: b1 is 1.5, expected at least 0 and less than 1"),
        (lambda: adam(eps=-1.0), "adam: eps is -1.0, expected more than 0"),
        (lambda: FlatSAE(0, 8, sparsify.TopK(1), key=KEY), "FlatSAE: embed is 0, expected at least 1"),
        (lambda: FlatSAE(8, 8, sparsify.TopK(1), chunk=0, key=KEY), "FlatSAE: chunk is 0, expected at least 1"),
        (lambda: HierarchicalSAE(4, 8, 5, 2, sparsify.TopK(1), sparsify.TopK(1), key=KEY), "sub is 5, but vectors"),
        (lambda: StageConfig("a", 0, 0.1), "StageConfig: steps is 0, expected at least 1"),
        (lambda: StageConfig("a", 1, -0.1), "StageConfig: learning_rate is -0.1, expected at least 0"),
        (lambda: Evaluate("r", "s", "lm", rows=0), "Evaluate: rows is 0, expected at least 1"),
        (lambda: Evaluate("r", "s", "lm", batch=-1), "Evaluate: batch is -1, expected at least 1"),
        (lambda: Harvest("o", Source("m", 1), {}, 5, context=1), "Harvest: context is 1, expected at least 2"),
        (lambda: Source("m", [-1]), "Source: layer.0 is -1, expected at least 0"),
    ],
)  # fmt: skip
def test_python_is_refused_as_a_config_is(make, sentence):
    with pytest.raises(UserError) as refused:
        make()
    assert str(refused.value).startswith(sentence)


class Twice(sparsify.AbstractSparsifier):
    """A new part: its range is in its annotation, and nowhere else."""

    factor: Annotated[float, Gt(1), Le(4)] = eqx.field(static=True)
    steps: Count = eqx.field(static=True, default=3)

    def activate(self, pre):
        return jax.nn.relu(pre)

    def __call__(self, pre, context):
        raise NotImplementedError

    def most_active(self, size):
        return size


@pytest.mark.parametrize(
    ("name", "value", "words"), [("factor", 5.0, "more than 1 and at most 4"), ("steps", 0, "at least 1")]
)
def test_a_new_part_states_its_range_once_and_has_both_doors(name, value, words, tmp_path):
    given = {"factor": 2.0, name: value}
    with pytest.raises(UserError, match=rf"^Twice: {name} is {given[name]}, expected {words}$"):
        Twice(**given)
    slot, kind = {"_target_": f"{__name__}.Twice"}, config.Supplied(kind=sparsify.AbstractSparsifier)
    file, trust = tmp_path / "part.yaml", __name__
    with pytest.raises(UserError, match=rf"part.yaml: {name} is {given[name]}, expected {words}$"):
        config.checked(slot | given, file, kind, trust=trust)
    assert Twice(2.0).steps == 3
    assert config.checked(slot | {"factor": 2}, file, kind, trust=trust)["factor"] == 2.0


def test_a_part_with_a_constructor_of_its_own_is_checked_before_it_runs():
    class Own(Ranged, eqx.Module):
        size: int

        def __init__(self, size: Count, *rest: Any, scale: Positive = 1.0):
            self.size = size if size > 0 else 1 // 0

    assert Own(2).size == 2 and Own(2, 3, scale=0.5).size == 2
    with pytest.raises(UserError, match=r"^Own: size is 0, expected at least 1$"):
        Own(0)
    with pytest.raises(UserError, match=r"^Own: scale is 0.0, expected more than 0$"):
        Own(1, scale=0.0)
    with pytest.raises(TypeError, match="size"):
        Own()


def test_a_function_under_ranged_keeps_its_name_and_its_signature():
    @ranged
    def half(x: Annotated[int, Ge(0)], by: Positive = 2.0) -> float:
        """Half."""
        return x / by

    assert half(4) == 2.0 and half.__name__ == "half" and half.__doc__ == "Half."
    with pytest.raises(UserError, match=r"^half: by is 0, expected more than 0$"):
        half(1, by=0)


def test_nothing_is_checked_again_inside_of_compiled_functions():
    """Modules are taken apart and put together there, with tracers in the place of numbers."""
    doubled = eqx.filter_jit(lambda s: jax.tree.map(lambda a: -a, s))(sparsify.JumpReLU(0.5))
    assert float(doubled.threshold[0]) == -0.5


def numbers(cls: type) -> list[str]:
    """The keys of a config class, and of the sections in it, whose ints say nothing of their range."""
    found = []
    for field in fields(cls):
        hint = hints_of(cls)[field.name]
        for member in config.schema.members(hint):
            if is_config(member.hint):
                found += [f"{field.name}.{name}" for name in numbers(member.hint)]
        text = str(hint)
        if ("int" in text.replace("Infinite", "").split("'")[0]) and violation(-(2**40), hint) is None:
            found.append(field.name)
    return found


@pytest.mark.parametrize(
    "verb", ["train", "harvest", "world", "teach", "evaluate", "ablate", "export", "browse", "steer", "report"]
)
def test_every_whole_number_of_every_config_has_a_range(verb):
    module = table.module(verb.removesuffix("_"))
    assert numbers(getattr(module, verb.capitalize())) == []


@pytest.mark.parametrize(
    ("verb", "file", "given", "override"),
    [
        *[("evaluate", None, {"run": "r", "store": "s", "lm": "m"}, o)
          for o in ("rows=0", "rows=-1", "sequences=0", "batch=0", "features=-1", "atoms=-1", "examples=0", "run=''")],
        *[("browse", None, {"run": "r", "store": "s", "lm": "m", "out": "o.html"}, o)
          for o in ("rows=0", "features=0", "atoms=0", "examples=-1", "spread=-1", "before=-1", "logits=0")],
        *[("steer", None, {"run": "r", "lm": "m", "prompts": ["a"], "out": "o.html"}, o)
          for o in ("prompts=[]", "prompts=['']", "controls=39", "most=0", "continuation=-1", "edit.share=.nan",
                    "batch=0", "seed=-1", "layer=-1", "latents=[-1]", "token=-1",
                    "path={_target_: jhsae.evals.AlongPath, count: 0}")],
        *[("export", None, {"run": "r", "out": "o", "format": "torch"}, o) for o in ("rows=0", "rows=x", "format=zip")],
        *[("import_", None, {"source": "s", "out": "o"}, o) for o in ("layer=-1", "layer=1.5", "out=''", "unpickle=1")],
        *[("harvest", "harvest/embedded.yaml", {"out": "o"}, o)
          for o in ("rows=0", "context=1", "context=99999999", "batch=0", "seed=-1", "shuffle_rows=0", "lm.layer=-1",
                    "lm.layer=[]", "lm.layer=[1,-2]", "mesh.data=0", "dtype=int4", "out=''")],
        *[("teach", "teacher/embedded.yaml", {"out": "o"}, o)
          for o in ("senses=0", "parents=0", "sub=0", "shrinkage=-0.1", "shrinkage=1.1", "variance=0", "variance=2",
                    "others=-1", "seed=-1", "lm.layer=-1", "limits.rest=1", "limits.overlap=1.5", "limits.min_tokens=0",
                    "limits.max_children=1")],
        *[("world", "worlds/tree_336.yaml", {"out": "o"}, o)
          for o in ("embed=0", "features=0", "trees.roots=0", "trees.branching=0", "trees.branching=[0,2]",
                    "trees.branching=[2]", "trees.branching=[3,2]", "trees.depth=-1", "trees.exclusive=1.1",
                    "trees.second_parents=-0.1", "means=-1", "stds=-1", "noise=-1", "bias=-1", "child_cosine=1",
                    "probabilities.highest=1.5", "probabilities.lowest=0", "orthogonalization.learning_rate=0",
                    "correlation={rank: 0}", "seed=-1", "out=''")],
        *[("ablate", "ablations/scale_to_geometry.yaml", {"out": "o"}, o)
          for o in ("seeds=[]", "seeds=[-1]", "rows=0", "sequences=0", "train=''")],
        *[("report", "report.yaml", {}, o) for o in ("runs=[]", "runs=['']", "out=''")],
        *[("quickstart", "quickstart.yaml", {"out": "o"}, o) for o in ("sequences=0", "train=[]", "lm=''")],
    ],
)  # fmt: skip
def test_every_verb_refuses_what_is_out_of_range(verb, file, given, override, tmp_path):
    module = table.module(verb.removesuffix("_"))
    cls = getattr(module, verb.strip("_").capitalize())
    path = config.find(file) if file else tmp_path / "here.yaml"
    if file is None:
        path.write_text(json.dumps(given))
        given = {}
    words = [f"{k}={v}" for k, v in given.items()]
    config.load(cls, path, words)
    with pytest.raises(
        UserError, match=rf"override {override.partition('=')[0].split('.')[0]}.* is .*(expected|write)"
    ):
        config.load(cls, path, [*words, override])


def test_ranges_are_no_part_of_the_hash():
    file = config.find("flat/topk.yaml")
    rows = (file.parents[2] / "experiments" / "flat" / "results.jsonl").read_text().splitlines()
    known = {row["name"]: row["config_hash"] for row in map(json.loads, rows)}
    assert config.config_hash(config.load(Train, file)) == known["topk"]
