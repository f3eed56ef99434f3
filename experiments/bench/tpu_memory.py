"""Memory and memory traffic of a training step on one TPU chip, from what the TPU compiler made; no TPU is needed.

    pip install -e '.[tpu]'
    python experiments/bench/tpu_memory.py [--chip v5p] [--experts 65536] [--json FILE] [sae.chunk=508 ...]

Compiles the step of a training config ahead of time, state donated, for one chip, from shapes alone.
``total = arguments + outputs - aliased + temporaries``. The largest values are results in the program's text, not
buffers: several of them may share memory. Traffic is what `jhsae plan` counts, by operation and lines of Python. Costs
are the compiler's estimates as they come, a negative time included.
Exit code 1: a program does not fit its chip.
"""

import argparse
import itertools
import math
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.folders import append_line
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.plan.by_operation import traffic_of
from jhsae.plan.cost import work_of
from jhsae.plan.estimate import compile_program, memory_of
from jhsae.plan.lowering import lower_train, stage_of, tile_load
from jhsae.plan.topology import topology
from jhsae.training.config import StageConfig, Train

GIB = 2**30
LISTED, SHOWN = 40, 20  # operations with the most traffic, in the file and printed
TOPOLOGIES = {"v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # the smallest that libtpu names; one chip of it is used
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
    top.add_argument("--stage", help="the stage whose step is compiled (default: the longest)")
    top.add_argument("--chip", action="append", choices=TOPOLOGIES, help="all by default; may be repeated")
    top.add_argument("--experts", type=int, action="append", help="sae.experts; repeated, one program each")
    top.add_argument("--batch", type=int, action="append", help="data.batch; repeated, one program each")
    top.add_argument("--dump", type=Path, help="write the compiled program's text there (of one program)")
    top.add_argument("--json", type=Path, help="append one row per program")
    arguments = top.parse_intermixed_args()
    try:
        fits = [report(row, arguments.json) for row in rows(arguments)]
    except UserError as error:
        print(f"tpu_memory: error: {error}", file=sys.stderr)
        return 2
    return 0 if all(fits) else 1


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


def measured(config: Train, stage: StageConfig, chip: str, dump: Path | None) -> dict[str, Any]:
    """What the compiler says of the step: GiB, cost, largest values; or how much too large it is."""
    device: Any = topology(TOPOLOGIES[chip]).devices[0]
    mesh = make_mesh(MeshShape(), [device])
    lowered = lower_train(config, stage, mesh, "tpu")
    found: dict[str, Any] = {"device": device.device_kind, "parameters": lowered.parameter_count}
    program, total, usable, seconds = compile_program(lowered.program)
    if program is None:
        return found | {"fits": False, "total_gib": total / GIB, "chip_gib": (usable or 0) / GIB}
    text, cost = program.as_text() or "", program.cost_analysis() or {}
    if dump:
        dump.write_text(text)
    work = work_of(text, 1, tile_load(config, mesh))
    return found | {
        "hbm_bytes": work.bytes,
        "traffic": [row._asdict() for row in traffic_of(work, text)[:LISTED]],
        "fits": True,
        **{f"{part}_gib": size / GIB for part, size in memory_of(program).items()},
        "total_gib": total / GIB,
        **{key: cost.get(key) for key in COST},
        "compile_seconds": seconds,
        "collectives": len(re.findall(COLLECTIVE, text)),
        "largest": largest(text),
    }


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
        modules = ", ".join(f"{word} {row[f'{key}_gib']:.2f}" for key, word in PARTS.items())
        print(f"  {row['total_gib']:.2f} GiB = {modules}; {row['collectives']} collectives")
        cost = ", ".join(f"{key} {'none' if row[key] is None else f'{row[key]:.4g}'}" for key in COST)
        print(f"  {cost}; compiled in {row['compile_seconds']:.0f} s")
        print("  largest values: " + "; ".join(row["largest"]))
        print(f"  {row['hbm_bytes'] / 1e9:.1f} GB of HBM traffic a step, most of it by:")
        for one in row["traffic"][:SHOWN]:
            print(
                f"  {one['bytes'] / 1e9:8.2f} GB in {one['runs']:,} runs: {one['operation']} ({one['source']})",
                flush=True,
            )
    else:
        print(f"  does not fit: {row['total_gib']:.2f} GiB of {row['chip_gib']:.2f} GiB", flush=True)
    if path:
        append_line(path, to_json(row))
    return row["fits"]


if __name__ == "__main__":
    sys.exit(main())
