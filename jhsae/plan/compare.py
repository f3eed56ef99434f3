"""The work of ``jhsae plan``: a config's training step on every candidate mesh, the best of them, and its harvest.

One program per mesh is compiled for the slice (`lowering`); the compiler reports its memory, its text gives work and
collectives (`cost`), and a roofline turns those into seconds (`estimate`).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh

from jhsae import config as cfg
from jhsae.activations.config import Harvest
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.folders import write_whole
from jhsae.parallel.mesh import MeshShape, make_mesh, rows_shards
from jhsae.plan import lowering
from jhsae.plan.estimate import Row, estimate
from jhsae.plan.format import format_mesh, format_plan
from jhsae.plan.topology import Topology, topology
from jhsae.sae import AbstractSAE
from jhsae.training.config import Train

DAY = 86_400
ITEMSIZE = {"bfloat16": 2, "float32": 4, "int8": 1}  # bytes of one value in a store
HARVEST = "harvest."  # an override of the harvest's config begins with it


def command(arguments: argparse.Namespace) -> bool:
    """Runs the verb: plans, prints, writes the JSON; returns whether the recommended mesh fits."""
    config, *words = arguments.words
    overrides = [word for word in words if not word.startswith(HARVEST)]
    settings = cfg.load(Train, cfg.find(config), overrides)
    harvest = _harvest_config(arguments, [word.removeprefix(HARVEST) for word in words if word.startswith(HARVEST)])
    where = topology(arguments.topology)
    chips = len(where.devices)
    batch = arguments.tokens_per_chip * chips if arguments.tokens_per_chip else settings.data.batch
    rows = [
        _plan_train(settings, shape, where, batch, arguments.stage, arguments.traffic)
        for shape in _shapes(arguments, settings, where, batch)
    ]
    best = recommended(rows)
    result: Row = {
        "config": config,
        "overrides": overrides,
        "config_hash": cfg.config_hash(settings),
        "topology": where.name,
        "chip": where.chip and where.chip._asdict(),
        "hosts": len({device.process_index for device in where.devices}),
        "precision": settings.precision,
        **rows[best],
        **_whole_run(settings, rows[best]),
        "meshes": rows,
        **cfg.provenance(),
    }
    if harvest:
        _log(f"compiling the language model of {arguments.harvest} for {where.name} ...")
        about = {"config": arguments.harvest, "config_hash": cfg.config_hash(harvest)}
        result["harvest"] = about | _plan_harvest(harvest, make_mesh(MeshShape(**result["mesh"]), where.devices), where)
    print(format_plan(result))
    if arguments.json:
        write_whole(Path(arguments.json), to_json(result, indent=2) + "\n")
    return bool(result["fits"])


def _shapes(arguments: argparse.Namespace, config: Train, where: Topology, batch: int) -> list[MeshShape]:
    chips = len(where.devices)
    if arguments.mesh:
        return [mesh_shape(text, chips) for text in arguments.mesh]
    sae = eqx.filter_eval_shape(lambda key: cfg.build(config.sae, AbstractSAE, key=key), jax.random.key(0))
    return candidates(chips, batch, sae.top_level.decoder.shape[0])


def _plan_train(config: Train, shape: MeshShape, where: Topology, batch: int, stage: str | None, traffic: bool) -> Row:
    mesh = make_mesh(shape, where.devices)
    config = replace(config, data=replace(config.data, batch=batch), mesh=shape)
    chosen = lowering.stage_of(config, stage)
    _log(f"compiling stage {chosen.name} for {where.name}, data {shape.data} x expert {shape.expert} ...")
    lowered = lowering.lower_train(config, chosen, mesh, where.platform)
    row = estimate(lowered, where, mesh, batch, lowering.tile_load(config, mesh), traffic)
    _log(f"compiled in {row['compile_seconds']:.0f} s: {format_mesh(row)}")
    return {"stage": chosen.name} | row


def _plan_harvest(config: Harvest, mesh: Mesh, where: Topology) -> Row:
    """Estimates one forward pass on the mesh, and the whole harvest if every token of it were stored."""
    shards = rows_shards(mesh)
    sequences = -(-config.batch // shards) * shards
    lowered, embed = lowering.lower_harvest(config, sequences, mesh, where.platform)
    tokens = sequences * config.context
    row = estimate(lowered, where, mesh, tokens)
    rate, places = row["tokens_per_second"], len(config.lm.places)
    return row | {
        "rows": config.rows,
        "days": rate and config.rows / rate / DAY,
        "output_bytes_per_second": rate and rate * embed * places * ITEMSIZE[config.dtype],
    }


def _whole_run(config: Train, row: Row) -> Row:
    """The whole run: as many tokens as the config asks for, in steps of the planned batch."""
    total = sum(stage.steps for stage in config.stages) * config.data.batch
    steps, seconds = ceil(total / row["tokens_per_step"]), row["step_seconds"]
    embed = eqx.filter_eval_shape(lambda key: cfg.build(config.sae, AbstractSAE, key=key), jax.random.key(0)).embed
    return {
        "tokens": total,
        "steps": steps,
        "days": seconds and steps * seconds / DAY,
        "input_bytes_per_second": seconds and row["tokens_per_step"] / seconds * embed * ITEMSIZE["bfloat16"],
    }


def _harvest_config(arguments: argparse.Namespace, overrides: list[str]) -> Harvest | None:
    if arguments.harvest is None:
        if overrides:
            raise UserError(
                f"{HARVEST}{overrides[0]} changes a harvest, but none is planned; write --harvest CONFIG.yaml"
            )
        return None
    config = cfg.load(Harvest, cfg.find(arguments.harvest), overrides)
    lowering.read_lm_config(config.lm.path)  # fail early if the model does not exist
    return config


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


EXPERT_SIZES = (1, 4, 16)
"""With more shards each has few experts, and every token's input is sent to all of them."""


def mesh_shape(text: str, chips: int) -> MeshShape:
    """``data=16,expert=4``, either of them alone, or ``16x4``. Raises `UserError` where it does not cover the slice."""
    sizes = dict(zip(("data", "expert"), text.split("x"), strict=False)) if "=" not in text else {}
    sizes |= dict(part.partition("=")[::2] for part in text.split(",") if "=" in part)
    if not sizes or not sizes.keys() <= {"data", "expert"} or not all(n.isdigit() and int(n) for n in sizes.values()):
        raise UserError(f"--mesh is {text!r}, expected sizes such as data=16,expert=4")
    expert = int(sizes["expert"]) if "expert" in sizes else chips // int(sizes["data"])
    data = int(sizes["data"]) if "data" in sizes else chips // expert
    if data * expert != chips:
        raise UserError(
            f"--mesh {text} is {data * expert} chips, but the topology has {chips}; write sizes with that product, "
            f"such as {' or '.join(f'data={chips // e},expert={e}' for e in EXPERT_SIZES if chips % e == 0)}"
        )
    return MeshShape(data, expert)


def candidates(chips: int, batch: int, experts: int) -> list[MeshShape]:
    """Meshes of all chips that divide batch and experts evenly, those with few expert shards first.

    Raises `UserError` where there is none.
    """
    sizes = [e for e in EXPERT_SIZES if chips % e == 0 and experts % e == 0 and batch % (chips // e) == 0]
    if not sizes:
        raise UserError(
            f"data.batch is {batch}, which no mesh of {chips} chips can share; write a multiple of {chips}, "
            f"or --tokens-per-chip {max(1, batch // chips)}"
        )
    return [MeshShape(chips // e, e) for e in sizes]


def recommended(plans: Sequence[dict[str, Any]]) -> int:
    """Index of the best plan: one that fits, then the fastest, then the one that needs least memory."""

    def badness(i: int) -> tuple[Any, ...]:
        plan = plans[i]
        return not plan["fits"], plan["step_seconds"] or 0.0, plan["bytes_per_chip"]

    return min(range(len(plans)), key=badness)
