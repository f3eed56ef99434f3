"""What a training step needs on one TPU chip, by the TPU compiler's own account; no TPU is needed.

    pip install -e '.[tpu]'
    python experiments/bench/tpu_memory.py [--chip v5p] [--experts 65536] [--json FILE] [sae.chunk=508 ...]

Compiles the step of a training config ahead of time, state donated, for one chip, from shapes alone.
``total = arguments + outputs - aliased + temporaries``. The largest values are results in the program's text, not
buffers: several of them may share memory. Costs are the compiler's estimates as they come, a negative time included.
Exit code 1: a program does not fit its chip.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jhsae import config as cfg
from jhsae import ops, train
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.mesh import MeshShape, make_mesh
from jhsae.run_config import Stage, Train
from jhsae.step import TrainState

GIB = 2**30
TOPOLOGIES = {"v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # the smallest that libtpu names; one chip of it is used
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
HBM = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
VALUE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\w+)\[([\d,]*)\]\S* ([\w-]+)\(")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
PLACELESS = {"parameter", "get-tuple-element", "bitcast", "tuple", "constant", "copy-done", "while", "conditional"}
COLLECTIVE = r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
PARTS = {"argument": "arguments", "output": "+ outputs", "alias": "- aliased", "temp": "+ temporaries"}
COST = ("flops", "bytes accessed", "optimal_seconds")


def main() -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config, such as sae.chunk=508")
    top.add_argument("--config", default="scale.yaml", help="of jhsae train; say reference/mixture_of_experts_v2.yaml")
    top.add_argument("--stage", help="the stage whose step is compiled, where the config has several")
    top.add_argument("--chip", action="append", choices=TOPOLOGIES, help="all by default; may be repeated")
    top.add_argument("--experts", type=int, action="append", help="sae.experts; repeated, one program each")
    top.add_argument("--batch", type=int, action="append", help="data.batch; repeated, one program each")
    top.add_argument("--dump", type=Path, help="write the compiled program's text there (of one program)")
    top.add_argument("--json", type=Path, help="append one row per program")
    arguments = top.parse_intermixed_args()
    try:
        use_libtpu()
        fits = [report(row, arguments.json) for row in rows(arguments)]
    except UserError as error:
        print(f"tpu_memory: error: {error}", file=sys.stderr)
        return 2
    return 0 if all(fits) else 1


def use_libtpu() -> None:
    """Points JAX at libtpu as a compiler; the programs are traced and described on CPU."""
    # or libtpu looks for the machine that it would run on, and lets one process alone load it
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    jax.config.update("jax_platforms", "cpu")
    if "TPU_LIBRARY_PATH" not in os.environ:
        spec = importlib.util.find_spec("libtpu")
        if spec is None or not spec.submodule_search_locations:
            raise UserError("the TPU compiler (libtpu) is not installed; write pip install -e '.[tpu]'")
        os.environ["TPU_LIBRARY_PATH"] = str(Path(spec.submodule_search_locations[0]) / "libtpu.so")


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per program: every chip, number of experts and batch that were asked for."""
    experts = [[f"sae.experts={e}"] for e in arguments.experts or ()] or [[]]
    batches = [[f"data.batch={b}"] for b in arguments.batch or ()] or [[]]
    asked = list(itertools.product(arguments.chip or TOPOLOGIES, experts, batches))
    if arguments.dump and len(asked) > 1:
        raise UserError(f"--dump holds one program, {len(asked)} were asked for; write one --chip, --experts, --batch")
    for chip, *more in asked:
        overrides = [*arguments.overrides, *itertools.chain(*more)]
        config = cfg.load(Train, cfg.find(arguments.config), overrides)
        stage = stage_of(config, arguments.stage)
        row = {
            "config": arguments.config,
            "overrides": overrides,
            "stage": stage.name,
            "chip": chip,
            "batch": config.data.batch,
            "sae": {key: value for key, value in cfg.to_dict(config)["sae"].items() if not isinstance(value, dict)},
            "config_hash": cfg.config_hash(config),
        }
        yield row | measured(config, stage, chip, arguments.dump) | {"libtpu": version("libtpu"), **cfg.provenance()}


def stage_of(config: Train, name: str | None) -> Stage:
    names = [stage.name for stage in config.stages]
    if name is None and len(names) > 1:
        raise UserError(f"the config has the stages {', '.join(names)}; write one of them as --stage")
    if name is not None and name not in names:
        raise UserError(f"--stage is {name}, expected one of {', '.join(names)}")
    return config.stages[names.index(name) if name else 0]


def measured(config: Train, stage: Stage, chip: str, dump: Path | None) -> dict[str, Any]:
    """What the compiler says of the step: GiB, cost, largest values; or how much too large it is."""
    device: Any = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    mesh = make_mesh(MeshShape(), [device])
    with ops.sized_for("tpu"):
        lowered, parameters = lower(config, stage, mesh)
    found: dict[str, Any] = {"device": device.device_kind, "parameters": parameters}
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (used := HBM.search(str(error))) is None:
            raise
        needed, has = (float(used[i]) * UNITS[used[i + 1]] / GIB for i in (1, 3))
        return found | {"fits": False, "total_gib": needed, "chip_gib": has}
    seconds = time.perf_counter() - start
    text, cost = compiled.as_text() or "", compiled.cost_analysis() or {}
    if dump:
        dump.write_text(text)
    return found | {
        "fits": True,
        **sizes_of(compiled),
        **{key: cost.get(key) for key in COST},
        "compile_seconds": seconds,
        "collectives": len(re.findall(COLLECTIVE, text)),
        "largest": largest(text),
    }


def sizes_of(compiled: jax.stages.Compiled) -> dict[str, float]:
    """GiB of arguments, outputs, the outputs that take a donated argument's place, temporaries, and the total."""
    memory = compiled.memory_analysis()
    gib = {key: getattr(memory, f"{key}_size_in_bytes") / GIB for key in PARTS}
    total = gib["argument"] + gib["output"] - gib["alias"] + gib["temp"]
    return {f"{key}_gib": value for key, value in (gib | {"total": total}).items()}


def lower(config: Train, stage: Stage, mesh: Mesh) -> tuple[jax.stages.Lowered, int]:
    """The step that `jhsae train` runs, on shapes placed on `mesh`, and how many parameters it trains."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def placed(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), tree)

    key = jax.random.key(config.seed)
    direction = cfg.build(config.optimizer)
    sae = eqx.filter_eval_shape(train.build_sae, config, key)
    state = eqx.filter_eval_shape(TrainState.init, sae, direction, key)
    phase = train._phase(config, stage, sae, normalizer(config, sae.embed), direction, mesh)
    batch = jax.ShapeDtypeStruct((config.data.batch, sae.embed), jnp.float32)
    arrays, static = eqx.partition((state, phase.parts), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    # eqx.filter_jit takes a shape for a constant, so that the step is compiled inside a jit with its own donation
    def step(state: PyTree, parts: PyTree, batch: Array) -> tuple[PyTree, PyTree]:
        whole, parts = eqx.combine((state, parts), static)
        after, metrics = phase.step((parts, batch), whole)
        return eqx.filter(after, eqx.is_array), metrics

    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(sae, _is_parameter)))
    return jax.jit(step, donate_argnums=0).lower(*placed((*arrays, batch))), parameters


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def normalizer(config: Train, embed: int) -> AbstractNormalizer:
    """The config's normaliser with shapes in the place of the statistics that a store would give."""
    part = cfg.build(config.data.normalize)
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in part.shapes(embed).items()}
    return replace(part, **shapes)


def largest(text: str, count: int = 5) -> list[str]:
    """The largest results of a program's instructions outside fusions, each shape once: ``1.86 GiB f32[...]``."""
    sizes: dict[str, tuple[int, str]] = {}
    inside = False
    for line in text.splitlines():
        if line and not line[0].isspace():
            inside = "fused_computation" in line
        value = VALUE.match(line)
        if value is None or inside or value[4] in PLACELESS:
            continue
        size = BYTES.get(value[2], 8) * math.prod(int(n) for n in value[3].split(",") if n)
        name = f"{value[2]}[{value[3]}]"
        sizes.setdefault(name, (size, f"{size / GIB:.2f} GiB {name} {value[4]} {value[1]}"))
    return [text for _, text in sorted(sizes.values(), reverse=True)[:count]]


def report(row: dict[str, Any], path: Path | None) -> bool:
    """Prints a row, appends it to the file, and says whether the program fits."""
    sizes = " ".join(f"{key} {row['sae'][key]:,}" for key in ("embed", "experts", "features") if key in row["sae"])
    print(
        f"{row['config']} {row['chip']}: {sizes}, batch {row['batch']:,}, {row['parameters'] / 1e6:,.1f} M parameters"
    )
    if row["fits"]:
        parts = ", ".join(f"{word} {row[f'{key}_gib']:.2f}" for key, word in PARTS.items())
        print(f"  {row['total_gib']:.2f} GiB = {parts}; {row['collectives']} collectives")
        cost = ", ".join(f"{key} {'none' if row[key] is None else f'{row[key]:.4g}'}" for key in COST)
        print(f"  {cost}; compiled in {row['compile_seconds']:.0f} s")
        print("  largest values: " + "; ".join(row["largest"]), flush=True)
    else:
        print(f"  does not fit: {row['total_gib']:.2f} GiB of {row['chip_gib']:.2f} GiB", flush=True)
    if path:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return row["fits"]


if __name__ == "__main__":
    sys.exit(main())
