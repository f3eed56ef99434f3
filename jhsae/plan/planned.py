"""A compiled program on a mesh as plain numbers: memory, work, exchange and time of each chip.

Seconds, and what follows from them, are None where the chip's rates are not known (``cpu:8``); so is everything but
memory where a program does not fit.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jhsae.plan import cost, links, program, roofline
from jhsae.plan.collectives import Groups
from jhsae.plan.loops import Tiles
from jhsae.plan.program import Compiled, Lowered
from jhsae.plan.topology import Topology

Row = dict[str, Any]


def planned(lowered: Lowered, topology: Topology, mesh: Mesh, tokens: int, tiles: Tiles | None = None) -> Row:
    """Compiles the program and counts what it needs; `tokens` of one run, over all chips."""
    compiled = program.compile_program(lowered.program)
    hbm = topology.chip.hbm if topology.chip else None
    row = {
        "mesh": {"data": mesh.shape["host"] * mesh.shape["data"], "expert": mesh.shape["expert"]},
        "chips": mesh.size,
        "tokens_per_step": tokens,
        "parameters": lowered.numbers,
        "bytes_per_chip": compiled.total,
        "memory": _memory(lowered, compiled),
        "hbm_bytes": compiled.usable or hbm,
        "fits": compiled.program is not None and (hbm is None or compiled.total <= hbm),
        "compile_seconds": compiled.seconds,
    }
    if compiled.program is None:
        unknown = ("flops", "hbm_traffic", "collectives", "loops", "times", "step_seconds", "tokens_per_second")
        return row | dict.fromkeys(unknown)
    return row | _work(compiled.program, topology, mesh, tokens, tiles)


def _memory(lowered: Lowered, compiled: Compiled) -> dict[str, float | None]:
    """Bytes per chip by what they hold; the sum is `bytes_per_chip`."""
    known: dict[str, float | None] = {"parameters": lowered.parameters, "optimizer": lowered.optimizer}
    if compiled.program is None:
        return known | {"batch_and_outputs": None, "temporaries": None}
    temporaries = program.sizes_of(compiled.program)["temp"]
    rest = compiled.total - temporaries - lowered.parameters - lowered.optimizer
    return known | {"batch_and_outputs": rest, "temporaries": temporaries}


def _work(compiled: jax.stages.Compiled, topology: Topology, mesh: Mesh, tokens: int, tiles: Tiles | None) -> Row:
    work = cost.work_of(compiled.as_text() or "", mesh.size, tiles, compiled.cost_analysis())
    places = topology.places(list(mesh.devices.flat))
    times = roofline.times_of(work, topology.chip, places) if topology.chip else None
    step = times.step if times else None
    return {
        "flops": work.flops,
        "hbm_traffic": work.bytes,
        "kernels": work.kernels,
        "compiler": {"flops": work.compiler_flops, "bytes": work.compiler_bytes, "our_flops_loops_once": work.once},
        "collectives": _exchange(work, topology, mesh, places),
        "loops": [loop._asdict() for loop in work.loops],
        "times": times and {**times._asdict(), "exchange": times.exchange, "bound": times.bound},
        "step_seconds": step,
        "tokens_per_second": step and tokens / step,
    }


def _exchange(work: cost.Work, topology: Topology, mesh: Mesh, places: links.Places) -> list[Row]:
    """One row per kind, group and network: payload and sent bytes of a chip in one step, and its seconds."""
    rows: dict[tuple[Any, ...], Row] = {}
    for collective in work.collectives:
        axes, dcn = axes_of(collective.groups, mesh), links.on_dcn(collective, places)
        key = {"kind": collective.kind, "axes": axes, "group": collective.size, "network": "dcn" if dcn else "ici"}
        empty = {"count": 0, "bytes": 0.0, "sent_bytes": 0.0, "seconds": 0.0 if topology.chip else None}
        row = rows.setdefault(tuple(key.values()), key | empty)
        row["count"] += collective.times
        row["bytes"] += collective.times * collective.bytes
        row["sent_bytes"] += collective.times * collective.sent
        if topology.chip:
            row["seconds"] += collective.times * links.seconds(collective, topology.chip, places)
    return sorted(rows.values(), key=lambda row: -row["sent_bytes"])


def axes_of(groups: Groups, mesh: Mesh) -> str:
    """The axes of the mesh along which the chips of a group differ, such as ``data`` or ``host+data``."""
    places = np.stack(np.unravel_index(groups[0], mesh.devices.shape))
    differ = [name for name, row in zip(mesh.axis_names, places, strict=True) if len(set(row.tolist())) > 1]
    return "+".join(differ)
