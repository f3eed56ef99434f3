"""Training checkpoints (Orbax: atomic, sharded, asynchronous), restored onto any mesh and number of processes.

A checkpoint holds the whole `TrainState`, the loader's position and a checksum of every array; on the mesh it was saved
from, a run continues bit for bit. A corrupt checkpoint is set aside with a warning and the previous one is restored.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental.multihost_utils import process_allgather

from jhsae.errors import NoRoomError, UserError, no_room
from jhsae.files.bounded import MIB, read_bytes
from jhsae.parallel.distributed import barrier, is_main, several
from jhsae.sae.io import load_sae as load_sae
from jhsae.sae.io import sae_files as sae_files
from jhsae.sae.io import save_sae as save_sae
from jhsae.training.drain_event_loop import draining_event_loops
from jhsae.training.fingerprint import fingerprints, shape_and_dtype
from jhsae.training.step import TrainState

logger = logging.getLogger(__name__)
RENAMING_SECONDS = 600


class DamagedError(RuntimeError):
    """A checkpoint cannot be read, or differs from what was saved."""


class Checkpoints:
    """The checkpoints of one run folder. Use it as a context manager, so that a pending save is finished.

    With several processes each calls every method; arrays are written and read by the processes that hold them.
    """

    def __init__(self, folder: epath.PathLike, max_to_keep: int | None = 2):
        """Opens the folder and removes what a killed save left behind.

        Args:
            folder: Local or in a bucket; created when it does not exist.
            max_to_keep: How many of the newest checkpoints to keep; None for all.
        """
        self._folder = epath.Path(folder) if "://" in str(folder) else epath.Path(folder).absolute()
        for file in [] if "://" in str(folder) else Path(folder).glob("*/_CHECKPOINT_METADATA"):
            read_bytes(file, MIB)  # Orbax reads each on construction and would block on a FIFO
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._writing():
                self._manager.wait_until_finished()
        finally:
            self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""
        self._manager.wait_until_finished()
        return self._complete()

    def _complete(self) -> list[int]:
        return sorted(ocp.utils.checkpoint_steps(self._folder))

    def save(self, state: TrainState, loader: dict[str, Any]) -> None:
        """Saves the state under the number ``state.step``; returns before the files are complete.

        Args:
            state: Read from the devices before this returns, so that it may be donated.
            loader: The loader's position (`get_state`), ready for JSON.

        Raises:
            UserError: This save, or the one before it, cannot be written; complete checkpoints are intact.
        """
        step = int(jax.device_get(state.step))
        arrays = eqx.filter(state, eqx.is_array)
        about: dict[str, Any] = {"loader": loader, "arrays": fingerprints(arrays)}
        about["sha256"] = _digest(about)
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about))
        with self._writing():
            saved = self._manager.save(step, args=items)
        if not saved:
            raise RuntimeError(f"the checkpoint of step {step} was not written: one of that step exists already")

    def resume(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the newest intact checkpoint; corrupt newer ones are renamed to ``STEP.damaged`` with a warning.

        Args:
            like: As in `restore`.

        Returns:
            The state and the loader's position, or None where there is no checkpoint.

        Raises:
            UserError: All checkpoints are corrupt, or the run needs other arrays than were saved.
        """
        damage: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                found = self.restore(like, step)
            except DamagedError as error:
                damage[step] = str(error)
                continue
            self._set_aside(damage, f"the run continues from step {step}")
            return found
        if damage:
            raise UserError(
                f"no checkpoint in {self._folder} can be read (step {max(damage)}: {damage[max(damage)]}); bring one "
                "back, or write another out=... to start again"
            )
        return None

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """Restores the checkpoint of `step`.

        Args:
            like: A state of arrays or `jax.ShapeDtypeStruct`s that has the shapes, dtypes and shardings to restore to.
            step: Number of finished updates.

        Returns:
            The state and the loader's position.

        Raises:
            UserError: The run needs other arrays than were saved.
            DamagedError: Files are missing or corrupt.
        """
        wanted, static = eqx.partition(like, lambda a: eqx.is_array(a) or isinstance(a, jax.ShapeDtypeStruct))
        self._manager.wait_until_finished()  # this step may still be being written
        _read_on_all(lambda: _check_files(self._folder / str(step)))
        about = _read_on_all(lambda: _read_about(self._folder / str(step) / "about"))
        self._check_layout(about["arrays"], wanted, step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        # the handler, not the manager, whose barrier would block the others when one process fails
        handler, path = ocp.StandardCheckpointHandler(), self._folder / str(step) / "state"
        arrays = _read_on_all(lambda: handler.restore(path, args=ocp.args.StandardRestore(abstract)))
        for name, got in fingerprints(arrays).items():
            if got != about["arrays"][name]:
                raise DamagedError(f"the checksum of {name} differs from the saved one")
        return eqx.combine(arrays, static), about["loader"]

    def _check_layout(self, saved: dict[str, Any], wanted: Any, step: int) -> None:
        found = {
            jax.tree_util.keystr(path): shape_and_dtype(a) for path, a in jax.tree_util.tree_leaves_with_path(wanted)
        }
        for name in {**found, **saved}:
            there, here = (_format(tree.get(name)) for tree in (saved, found))
            if there != here:
                raise UserError(
                    f"the checkpoint of step {step} in {self._folder} holds {there} at {name} where the run needs "
                    f"{here}; resume with its own config and version of jhsae, or write another out=..."
                )

    def _set_aside(self, damage: dict[int, str], then: str) -> None:
        for step, reason in damage.items():
            if is_main():
                (self._folder / str(step)).rename(self._folder / f"{step}.damaged")
                logger.warning(
                    f"{self._folder}: the checkpoint of step {step} is damaged ({reason}); kept as {step}.damaged"
                )
        if damage:
            barrier(f"set aside {sorted(damage)} of {self._folder}", RENAMING_SECONDS)
            self._manager.reload()
            if is_main():
                logger.warning(f"{self._folder}: {then}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:  # tensorstore's and Python's
            newest = f"that of step {max(self._complete())}" if self._complete() else "not there yet"
            kind = NoRoomError if no_room(error) else UserError
            raise kind(
                f"a checkpoint cannot be written to {self._folder} ({_short(error)}); the newest complete one is "
                f"{newest}; make room there, then run the same command to continue"
            ) from error


def _read_on_all(read: Callable[[], Any]) -> Any:
    """What `read` returns; raises `DamagedError` on every process when it fails on one."""
    found, failed = None, ""
    try:
        with draining_event_loops():
            found = read()
    except (MemoryError, jax.errors.JaxRuntimeError):  # not caused by the files
        raise
    except Exception as error:  # Orbax raises bare ones for files that are missing, cut short or altered
        failed = _short(error.__cause__ or error)
    anywhere = np.any(process_allgather(np.asarray(bool(failed)))) if several() else bool(failed)
    if anywhere:
        raise DamagedError(failed or "another process cannot read its part")
    return found


def _check_files(path: epath.Path) -> None:
    """ValueError for anything in a local checkpoint but folders and files: tensorstore blocks on a FIFO."""
    for file in [] if "://" in str(path) else Path(path).rglob("*"):
        if not file.is_dir() and not file.is_file():
            raise ValueError(f"{file} is no file")


def _read_about(path: epath.Path) -> dict[str, Any]:
    """The loader's position and the checksums of the arrays. Checkpoints of older versions have no sha256."""
    about = ocp.JsonCheckpointHandler().restore(path)
    if not isinstance(about, dict) or about.keys() - {"sha256"} != {"loader", "arrays"}:
        raise ValueError(f"{path} does not describe a checkpoint")
    if "sha256" in about:
        if about.pop("sha256") != _digest(about):
            raise ValueError(f"{path} is not what was written: its checksum differs")
        return about
    loader, arrays = about["loader"], about["arrays"]
    valid = isinstance(loader, dict) and all(type(value) is int and value >= 0 for value in loader.values())
    if not valid or "next_index" not in loader or loader.keys() - {"next_index", "lanes"}:
        raise ValueError(f"{path} holds the position {str(loader)[:100]}, expected numbers of at least 0")
    for name, entry in arrays.items() if isinstance(arrays, dict) else [("arrays", arrays)]:
        if not isinstance(entry, dict) or not {"dtype", "shape", "fingerprint"} <= entry.keys():
            raise ValueError(f"{path} does not describe the array {name}")
    return about


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _format(leaf: dict[str, Any] | None) -> str:
    return "nothing" if leaf is None else f"{leaf['dtype']}{leaf['shape']}"


def _short(error: BaseException) -> str:
    """The end of an error's message, which names the cause, without the specification that tensorstore appends."""
    text = " ".join(str(error).split("[tensorstore_spec")[0].split("[os_error_code")[0].split())
    return (text if len(text) < 200 else f"... {text[-200:]}") or type(error).__name__
