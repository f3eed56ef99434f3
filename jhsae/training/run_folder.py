"""Run-directory ownership, completion and initial metadata.

Its files: config.yaml, run.json (commit, versions, store), metrics.jsonl, timing.jsonl, checkpoints/, profile/ where
``profile_steps`` asks for it and, when the run is finished, sae/.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jhsae import config as cfg
from jhsae.data import Hook, ModelName, Stores, places_of
from jhsae.data.hook import RESIDUAL
from jhsae.data.source import AbstractSource
from jhsae.errors import UserError
from jhsae.files.bounded import read_object, to_json
from jhsae.files.folders import PARTIAL, Folder, is_bucket, local_copy, make_folder, open_folder, write_whole
from jhsae.files.lock import SUFFIX
from jhsae.parallel.distributed import is_main
from jhsae.training.config import Train
from jhsae.training.logs import last_row


def check_owner(folder: str | Folder, config: Train) -> None:
    """Raises `UserError` when `folder` holds a run of another config, or something that is not a run.

    A run may be resumed with another `mesh`; the numbers differ by rounding alone.
    """
    folder = open_folder(folder)
    if not is_bucket(folder) and os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is no folder; write another out=...")
    if not folder.exists() or all(file.name.endswith((PARTIAL, SUFFIX)) for file in folder.iterdir()):
        return
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} exists and is not a run folder (no config.yaml in it); write another out=...")
    with local_copy(folder / "config.yaml") as file:
        # packages that the user's own config names are trusted, so that the two can be compared
        there = replace(cfg.read(Train, file, cfg.packages(config)), mesh=config.mesh)
    if cfg.config_hash(there) != cfg.config_hash(config):
        found = cfg.diff(there, config)
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(f"{folder} holds a run of another config ({'; '.join(found[:4])}{more}); write another out=...")


def finished(folder: Folder) -> bool:
    """True when the trained SAE is there."""
    return (folder / "sae" / "sae.json").exists()


def write_metadata(
    folder: Folder, config: Train, store: Stores | AbstractSource, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes config.yaml and run.json (`notes` too), or checks that a run to be resumed began with this very store."""
    identity = {"path": store.path, "sha256": store.identity()}
    about = {"name": folder.name, "config_hash": cfg.config_hash(config), **cfg.provenance(), "store": identity}
    about |= {"notes": list(notes)} if notes else {}
    path = folder / "run.json"
    if path.exists():
        before = _stored(path)
        if not store.is_known_as(before):
            raise UserError(
                f"the store {store.path} has changed since {folder} began ({before[:12]} then, "
                f"{identity['sha256'][:12]} now); bring the old store back, or write another out=..."
            )
    if is_main():
        make_folder(folder)
        write_whole(folder / "config.yaml", cfg.to_yaml(config))
        write_whole(path, to_json(about, indent=2) + "\n")
    return about


def origin_of(store: Stores | AbstractSource) -> dict[str, Any]:
    """What ``sae.json`` says of the model and the hooks: ``reads``, and ``writes`` of an SAE of another target.

    Of a residual stream the layer alone is told; of another hook its name too; of several a list of ``hooks``.
    """
    model = ModelName.recorded(store.manifest)
    if isinstance(store, AbstractSource):
        return {"reads": _place(model, (store.manifest.place,))}
    read, written = places_of(store)
    return {"reads": _place(model, read)} | ({} if written == read else {"writes": _place(model, written)})


def _place(model: ModelName, hooks: tuple[Hook, ...]) -> dict[str, Any]:
    if len(hooks) > 1:
        return model.reads(None) | {"hooks": [str(hook) for hook in hooks]}
    return model.reads(hooks[0].block) | ({} if hooks[0].name == RESIDUAL else {"hook": hooks[0].name})


def summary(folder: Folder, config: Train) -> str:
    """A finished run in one line: its steps and, where there is a row of metrics, the numbers of the last."""
    row = last_row(folder / "metrics.jsonl")
    parts = [f"{sum(stage.steps for stage in config.stages):,} steps"]
    for name, key in ("explained variance", "explained_variance"), ("L0", "l0"):
        parts += [f"{name} {row[key]:.3g}"] if row.get(key) is not None else []
    parts += [f"{100 * row['dead']:.2g} % dead"] if row.get("dead") is not None else []
    return f"{folder}: {', '.join(parts)}"


def _stored(path: Folder) -> str:
    """The identity of the store that a run began with."""
    store = read_object(path).get("store")
    found = store.get("sha256") if isinstance(store, dict) else None
    if not isinstance(found, str):
        raise UserError(f"{path} does not say which store the run began with; bring it back, or write another out=...")
    return found
