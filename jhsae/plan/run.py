"""``jhsae plan``: what a run needs and how long it takes, before anything is rented.

The real step is compiled for the slice (`training`, `harvesting`), one program per mesh; the compiler says what memory
it needs, and its text what it computes and exchanges (`cost`). A roofline makes seconds of that (`roofline`).
"""

import argparse
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path

import equinox as eqx
import jax

from jhsae import config as cfg
from jhsae.activations.config import Harvest
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.folders import write_whole
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.plan import meshes, training
from jhsae.plan.harvesting import plan_harvest, settings_of
from jhsae.plan.page import brief, page
from jhsae.plan.planned import Row, planned
from jhsae.plan.topology import Topology, topology
from jhsae.sae import AbstractSAE
from jhsae.training.config import Train

STORED = 2  # bytes of a number in a store of bfloat16
DAY = 86_400
HARVEST = "harvest."  # an override of the harvest's config begins with it


def command(arguments: argparse.Namespace) -> bool:
    """Plans, prints, writes the JSON, and says whether the recommended mesh fits."""
    config, *words = arguments.words
    overrides = [word for word in words if not word.startswith(HARVEST)]
    settings = cfg.load(Train, cfg.find(config), overrides)
    harvest = _harvest(arguments, [word.removeprefix(HARVEST) for word in words if word.startswith(HARVEST)])
    where = topology(arguments.topology)
    chips = len(where.devices)
    batch = arguments.tokens_per_chip * chips if arguments.tokens_per_chip else settings.data.batch
    rows = [
        _plan_train(settings, shape, where, batch, arguments.stage)
        for shape in _shapes(arguments, settings, where, batch)
    ]
    best = meshes.recommended(rows)
    result: Row = {
        "config": config,
        "overrides": overrides,
        "config_hash": cfg.config_hash(settings),
        "topology": where.name,
        "chip": where.chip and where.chip._asdict(),
        "hosts": len({device.process_index for device in where.devices}),
        "precision": settings.precision,
        **rows[best],
        **_run(settings, rows[best]),
        "meshes": rows,
        **cfg.provenance(),
    }
    if harvest:
        _say(f"compiling the language model of {arguments.harvest} for {where.name} ...")
        about = {"config": arguments.harvest, "config_hash": cfg.config_hash(harvest)}
        result["harvest"] = about | plan_harvest(harvest, make_mesh(MeshShape(**result["mesh"]), where.devices), where)
    print(page(result))
    if arguments.json:
        write_whole(Path(arguments.json), to_json(result, indent=2) + "\n")
    return bool(result["fits"])


def _shapes(arguments: argparse.Namespace, config: Train, where: Topology, batch: int) -> list[MeshShape]:
    chips = len(where.devices)
    if arguments.mesh:
        return [meshes.mesh_shape(text, chips) for text in arguments.mesh]
    sae = eqx.filter_eval_shape(lambda key: cfg.build(config.sae, AbstractSAE, key=key), jax.random.key(0))
    return meshes.candidates(chips, batch, sae.top_level.decoder.shape[0])


def _plan_train(config: Train, shape: MeshShape, where: Topology, batch: int, stage: str | None) -> Row:
    mesh = make_mesh(shape, where.devices)
    config = replace(config, data=replace(config.data, batch=batch), mesh=shape)
    chosen = training.stage_of(config, stage)
    _say(f"compiling stage {chosen.name} for {where.name}, data {shape.data} x expert {shape.expert} ...")
    lowered = training.lower(config, chosen, mesh, where.platform)
    row = planned(lowered, where, mesh, batch, training.tiles_of(config, mesh))
    _say(f"compiled in {row['compile_seconds']:.0f} s: {brief(row)}")
    return {"stage": chosen.name} | row


def _run(config: Train, row: Row) -> Row:
    """The whole run: as many tokens as the config asks for, in steps of the planned batch."""
    total = sum(stage.steps for stage in config.stages) * config.data.batch
    steps, seconds = ceil(total / row["tokens_per_step"]), row["step_seconds"]
    embed = eqx.filter_eval_shape(lambda key: cfg.build(config.sae, AbstractSAE, key=key), jax.random.key(0)).embed
    return {
        "tokens": total,
        "steps": steps,
        "days": seconds and steps * seconds / DAY,
        "input_bytes_per_second": seconds and row["tokens_per_step"] / seconds * embed * STORED,
    }


def _harvest(arguments: argparse.Namespace, overrides: list[str]) -> Harvest | None:
    if arguments.harvest is None:
        if overrides:
            raise UserError(
                f"{HARVEST}{overrides[0]} changes a harvest, but none is planned; write --harvest CONFIG.yaml"
            )
        return None
    config = cfg.load(Harvest, cfg.find(arguments.harvest), overrides)
    settings_of(config.lm.path)  # a model that nobody has ends here, before anything is compiled
    return config


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
