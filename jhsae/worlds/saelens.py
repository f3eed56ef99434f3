"""The two JSON files of a saved SyntheticModel of SAELens: its config, and the trees.

Facts about SAELens 6.54, which no code is taken from. It stores feature vectors, bias and probabilities as tensors, but
regenerates means and standard deviations, and the thresholds of correlated firing, from the generators in the config.
So a generator is written only where it gives the numbers of the world; otherwise its name is `EXACT`, which SAELens
refuses ("Unknown name") rather than load another world. Noise and second parents it has no place for: it ignores them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jhsae.errors import UserError, nearest
from jhsae.files.forms import FLAG, LIST, NUMBER, OBJECT, TEXT, check, expect, setting, whole
from jhsae.ranges import INT32
from jhsae.worlds.generators import (
    AbstractGenerator,
    AbstractMagnitudes,
    ConstantMagnitude,
    ConstantProbability,
    ExponentialMagnitudes,
    FoldedNormal,
    LinearMagnitudes,
    LinearProbabilities,
    RandomProbabilities,
    Zipf,
)
from jhsae.worlds.hierarchy import Hierarchy
from jhsae.worlds.origin import Generators
from jhsae.worlds.world import World

Names = dict[str, tuple[type, dict[str, str]]]  # their name -> our class, and their key -> our field

EXACT = "jhsae_world.safetensors"
RANGE = {"max_prob": "highest", "min_prob": "lowest"}
ENDS = {"start": "start", "end": "end"}
PROBABILITIES: Names = {
    "zipfian": (Zipf, {"exponent": "exponent", **RANGE}),
    "linear": (LinearProbabilities, RANGE),
    "random": (RandomProbabilities, RANGE),
    "constant": (ConstantProbability, {"probability": "probability"}),
}
MAGNITUDES: Names = {
    "constant": (ConstantMagnitude, {"value": "value"}),
    "linear": (LinearMagnitudes, ENDS),
    "exponential": (ExponentialMagnitudes, ENDS),
    "folded_normal": (FoldedNormal, {k: k for k in ("mean", "std", "min_value", "max_value")}),
}
OPTIONAL = {
    "hierarchy?": {"compensate_probabilities?": FLAG},
    "correlation?": OBJECT,
    "orthogonalization?": OBJECT,
    "dtype?": TEXT,
    "seed?": whole(0, 2**63 - 1),
}
SIZE = whole(1, INT32)
FORM = {"num_features": SIZE, "hidden_dim": SIZE, "firing_probability": OBJECT, **OPTIONAL}
KEYS = {key.rstrip("?") for key in FORM} | {"std_firing_magnitudes", "mean_firing_magnitudes", "bias"}
NODE_KEYS = {
    "feature_index", "children", "mutually_exclusive_children", "scale_children_by_parent", "feature_id",
}  # fmt: skip
LATER = "written by another version of SAELens than 6.54, or no world"


def write_config(world: World, generators: Generators | None) -> dict[str, Any]:
    """The config with which SAELens draws the numbers of this world, as far as it can."""
    found = _fitting(world, generators)
    hierarchy = world.hierarchy
    firing: Any = None if found.get("probabilities") is None else _write(found["probabilities"], PROBABILITIES)
    if firing is None:  # without a correlation SAELens takes the stored probabilities
        independent = {"generator_name": "constant", "probability": float(np.mean(world.probabilities))}
        firing = independent if world.correlation_factor is None else {"generator_name": EXACT}
    factor = world.correlation_factor
    scale = None if factor is None else float(np.sqrt(np.mean(np.square(factor))))
    compensate = bool(generators and generators.compensate and "probabilities" in found)
    return {
        "num_features": world.size,
        "hidden_dim": world.embed,
        "firing_probability": firing,
        "hierarchy": _hierarchy_config(hierarchy, compensate) if hierarchy.edges else None,
        "orthogonalization": None,
        "correlation": None if factor is None else {"rank": factor.shape[1], "correlation_scale": scale, "seed": None},
        "std_firing_magnitudes": _write_magnitudes(found.get("stds"), world.stds),
        "mean_firing_magnitudes": _write_magnitudes(found.get("means"), world.means),
        "bias": float(np.linalg.norm(world.bias)),
        "dtype": "float32",
        "seed": None if generators is None else generators.seed,
    }


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raises `UserError` for what is no config of SAELens 6.54."""
    if unknown := sorted(config.keys() - KEYS):
        raise UserError(f"{path} has the key {unknown[0]!r}{nearest(unknown[0], KEYS)}; {LATER}")
    check(config, FORM, path, mend=f"; {LATER}")
    if not isinstance(config.get("bias", 1.0), bool):
        expect(config.get("bias", 1.0), NUMBER, f"{path}: 'bias'")


def read_generators(config: Mapping[str, Any], path: Path) -> Generators:
    """The generators that a checked config names.

    Raises:
        UserError: A generator that SAELens 6.54 does not have, or one with other keys.
    """
    seed = config.get("seed")
    return Generators(
        _read(config["firing_probability"], PROBABILITIES, path, "firing_probability"),
        _read_magnitudes(config.get("mean_firing_magnitudes", 1.0), path, "mean_firing_magnitudes"),
        _read_magnitudes(config.get("std_firing_magnitudes", 0.0), path, "std_firing_magnitudes"),
        bool((config.get("hierarchy") or {}).get("compensate_probabilities")),
        0 if seed is None else seed % 2**32,
    )


def write_trees(hierarchy: Hierarchy) -> dict[str, Any]:
    """The trees of first parents. A flag without the two children that SAELens asks for is left out."""
    first: dict[int, list[int]] = {}
    for i, parents in enumerate(hierarchy.above):
        if parents:
            first.setdefault(parents[0], []).append(i)
    nodes: dict[int, dict[str, Any]] = {}
    for i in reversed(hierarchy.order):
        below = first.get(i, [])
        nodes[i] = {
            "feature_index": i,
            "mutually_exclusive_children": i in hierarchy.exclusive and len(below) > 1,
            "scale_children_by_parent": i in hierarchy.scaled,
            "feature_id": None,
            "children": [nodes[child] for child in below],
        }
    return {"roots": [nodes[int(i)] for i in hierarchy.roots if hierarchy.below[i]]}


def read_trees(trees: Mapping[str, Any], features: int, path: Path) -> Hierarchy:
    """The hierarchy in a ``hierarchy.json``.

    Raises:
        UserError: A node without a feature, a feature that stands there twice or below itself, or no trees.
    """
    edges: list[tuple[int, int]] = []
    exclusive, scaled, seen = set[int](), set[int](), set[int]()
    todo: list[tuple[Any, tuple[int, ...]]] = [(node, ()) for node in setting(trees, "roots", list, path)]
    while todo:
        node, above = todo.pop()
        i, children = _node(node, features, path)
        if i in seen:
            what = "is below itself" if i in above else "stands there twice"
            raise UserError(f"{path}: feature {i} {what}, expected every feature once; make the world again")
        seen.add(i)
        edges += [(above[-1], i)] if above else []
        exclusive |= {i} if children and node.get("mutually_exclusive_children") else set()
        scaled |= {i} if children and node.get("scale_children_by_parent") else set()
        todo += [(child, (*above, i)) for child in children]
    edges.sort(key=lambda edge: edge[1])
    return Hierarchy(features, tuple(edges), frozenset(exclusive), frozenset(scaled))


def _node(node: Any, features: int, path: Path) -> tuple[int, list[Any]]:
    """The feature and the children of a node."""
    expect(node, OBJECT, f"{path}: a node", "; make the world again")
    if unknown := sorted(node.keys() - NODE_KEYS):
        raise UserError(f"{path}: a node has the key {unknown[0]!r}{nearest(unknown[0], NODE_KEYS)}; {LATER}")
    for key in ("mutually_exclusive_children", "scale_children_by_parent"):
        expect(node.get(key, False), FLAG, f"{path}: {key!r}", "; make the world again")
    if node.get("feature_index") is None:
        raise UserError(
            f"{path} has a node without feature_index, which groups others, expected a feature at every node; give it "
            "a feature, or move its children up"
        )
    i = expect(node["feature_index"], whole(0, features - 1), f"{path}: 'feature_index'", "; make the world again")
    return i, expect(node.get("children", []), LIST, f"{path}: 'children' of feature {i}", "; make the world again")


def _fitting(world: World, generators: Generators | None) -> dict[str, AbstractGenerator]:
    """The generators whose numbers are those of the world."""
    if generators is None:
        return {}
    values = generators.values(world.hierarchy)
    return {
        name: getattr(generators, name)
        for name, value in values.items()
        if np.allclose(value, getattr(world, name), rtol=1e-5, atol=1e-7)
    }


def _write_magnitudes(generator: AbstractGenerator | None, values: Any) -> Any:
    if generator is None:
        first = float(values[0])
        return first if bool(np.all(np.asarray(values) == values[0])) else {"generator_name": EXACT}
    return generator.value if isinstance(generator, ConstantMagnitude) else _write(generator, MAGNITUDES)


def _write(generator: AbstractGenerator, names: Names) -> dict[str, Any]:
    name = next(name for name, (cls, _) in names.items() if type(generator) is cls)
    return {theirs: getattr(generator, ours) for theirs, ours in names[name][1].items()} | {"generator_name": name}


def _read_magnitudes(value: Any, path: Path, key: str) -> AbstractMagnitudes:
    if not isinstance(value, dict):
        return ConstantMagnitude(float(expect(value, NUMBER, f"{path}: {key!r}", f"; {LATER}")))
    return _read(value, MAGNITUDES, path, key)


def _read(value: dict[str, Any], names: Names, path: Path, key: str) -> Any:
    name = value.get("generator_name")
    if not isinstance(name, str) or name not in names:
        raise UserError(f"{path}: {key!r} has the generator {str(name)[:60]!r}, expected one of {', '.join(names)}")
    cls, fields = names[name]
    given = {k: v for k, v in value.items() if k != "generator_name" and v is not None}
    if unknown := sorted(given.keys() - fields):
        raise UserError(f"{path}: {key!r} has the key {unknown[0]!r}{nearest(unknown[0], fields)}; {LATER}")
    for k, v in given.items():
        expect(v, NUMBER, f"{path}: '{key}.{k}'", f"; {LATER}")
    try:
        return cls(**{fields[k]: float(v) for k, v in given.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {key!r} cannot be used ({error}); {LATER}") from error


def _hierarchy_config(hierarchy: Hierarchy, compensate: bool) -> dict[str, Any]:
    """What SAELens wants to read there. It builds no trees from it, as it finds them in the other file."""
    counts = [len(below) for below in hierarchy.below if below]
    several = [i for i, below in enumerate(hierarchy.below) if len(below) > 1]
    least, most = max(2, min(counts)), max(2, max(counts))
    return {
        "total_root_nodes": sum(bool(hierarchy.below[i]) for i in hierarchy.roots),
        "branching_factor": least if least == most else [least, most],
        "max_depth": int(hierarchy.levels.max()),
        "mutually_exclusive_portion": len(hierarchy.exclusive & set(several)) / max(1, len(several)),
        "mutually_exclusive_min_depth": 0,
        "mutually_exclusive_max_depth": None,
        "compensate_probabilities": compensate,
        "scale_children_by_parent": bool(hierarchy.scaled),
    }
