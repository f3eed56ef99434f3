"""``jhsae world``: from a config to a world, synthetic activations whose features and hierarchy are known."""

import logging
from dataclasses import asdict
from pathlib import Path

from jhsae import config as cfg
from jhsae.commands.last_line import command, last_line
from jhsae.commands.made_before import same_config
from jhsae.files.folders import local_folder, refuse_existing
from jhsae.files.lock import owned
from jhsae.worlds import WorldConfig as World
from jhsae.worlds import build_world, read_world, save_world
from jhsae.worlds.files import read_about
from jhsae.worlds.hierarchy import Hierarchy
from jhsae.worlds.summary import Summary, summary

logger = logging.getLogger(__name__)
SOURCE = "jhsae.worlds.WorldActivations"


def run(config: World) -> Path:
    """Makes the world, prints what was made and returns its folder. Raises what `make` does."""
    folder = make(config)
    saved = read_world(folder)
    numbers = summary(saved.world)
    print(last_line(folder, about(numbers), following(folder, saved.world.hierarchy, numbers, saved.world.embed)))
    return folder


def make(config: World) -> Path:
    """Makes the world, or leaves the one that this very config made alone.

    Returns:
        The world's folder.

    Raises:
        UserError: Parts that do not fit each other, or a world of another config.
    """
    out = local_folder(config.out)
    with owned(out, "world"):
        if _finished(out, cfg.config_hash(config)):
            logger.info(f"{out} is finished; nothing to do")
        else:
            refuse_existing(out)
            world, generators = build_world(config)
            origin = {"config": cfg.to_dict(config), "config_hash": cfg.config_hash(config), **cfg.provenance()}
            save_world(world, out, generators, origin | {"summary": asdict(summary(world))})
    return out


def about(numbers: Summary) -> list[str]:
    """The main numbers of a world in words."""
    words = [f"{numbers.features:,} features", f"{numbers.roots} roots", f"depth {numbers.depth}"]
    words += [f"{numbers.alone:,} features in no tree"] if numbers.alone else []
    words += [f"mean L0 {numbers.l0:.1f}"]
    return words + ([] if numbers.cosine is None else [f"mean largest cosine {numbers.cosine:.2f}"])


def following(folder: Path, hierarchy: Hierarchy, numbers: Summary, embed: int) -> str:
    """The command that trains on it: an H-SAE with an expert for each parent, or a flat SAE where there is none."""
    data = ["data.store=null", f"data.live._target_={SOURCE}", f"data.live.path={folder}", f"sae.embed={embed}"]
    if not hierarchy.edges:
        k = min(numbers.features, max(1, round(numbers.l0)))
        sizes = [f"sae.features={numbers.features}", f"sae.sparsifier.k={k}"]
        return command("jhsae", "train", "quickstart/topk.yaml", *data, *sizes, "out=runs/world")
    children = [len(below) for below in hierarchy.below if below]
    sizes = [f"sae.experts={len(children)}", f"sae.atoms={max(children)}", f"sae.sub={min(4, embed)}"]
    sizes += [f"sae.route.k={min(len(children), max(1, round(numbers.parents_l0)))}"]
    return command("jhsae", "train", "quickstart/scale.yaml", *data, *sizes, "out=runs/world")


def _finished(out: Path, config_hash: str) -> bool:
    """True when this very config made `out`. `UserError`: another one did."""
    found = read_about(out)
    return found is not None and same_config(out, "a world", found["origin"].get("config_hash"), config_hash)
