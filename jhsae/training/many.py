"""Trains several runs in one process: one reading of the store, or one pass of the language model, serves them all.

The runs take turns, one update each; the next is the one that has read the fewest rows, so that all want the same rows
at nearly the same time. Every run has its own folder, checkpoints, seed and length, and its bits are those of
``jhsae train`` for it alone: a run may be resumed, finished or measured by itself. A run that fails ends alone.
"""

import json
import logging
import os
import traceback
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from jhsae.data import Store
from jhsae.data.source import AbstractSource
from jhsae.errors import UserError, outcome
from jhsae.files.folders import Folder, is_bucket, open_folder
from jhsae.files.lock import owned
from jhsae.parallel.distributed import is_main, several
from jhsae.parallel.memory import check_state
from jhsae.parallel.mesh import make_mesh
from jhsae.parallel.preemption import StopRequest
from jhsae.parallel.progress import ProgressLines
from jhsae.parallel.watchdog import Watchdog
from jhsae.training.config import Train
from jhsae.training.loop import DivergedError
from jhsae.training.many_config import load_many
from jhsae.training.run import Run, open_loader, open_source, prepare, stopped
from jhsae.training.run_folder import check_owner, finished
from jhsae.training.sharding import abstract_state
from jhsae.training.step import TrainState
from jhsae.training.turns import Turns, share, share_passes

logger = logging.getLogger(__name__)
LAYER = "layer"  # the argument in which sources that share their passes differ


class FailedRunsError(RuntimeError):
    """Some of several runs have failed; the others went on.

    `errors` are theirs by folder, `exit_code` is that of the first.
    """

    def __init__(self, errors: dict[str, Exception], runs: int):
        said = "; ".join(f"{folder}: {expected[0]}" for folder, e in errors.items() if (expected := outcome(e)))
        super().__init__(f"{len(errors)} of {runs} runs failed, the others are finished: {said}")
        self.errors = errors
        first = outcome(next(iter(errors.values())))
        self.exit_code = 1 if first is None else first[1]


def train_many(configs: Sequence[Train | str | Path], overrides: Sequence[str] = ()) -> list[Folder]:
    """Trains, or resumes, several runs together; those that are finished are left alone.

    Args:
        configs: The runs, each with a folder of its own: configs, or YAMLs of one run or of several (`load_many`). They
            share a mesh; all else may differ. Runs whose ``data`` is equal share one loader; where ``data.live``
            differs in the layer alone, one pass of the language model serves all layers.
        overrides: Overrides, such as ``stages.0.steps=100``, of every run that is read from a YAML.

    Returns:
        The run folders, in the order of `configs`.

    Raises:
        UserError: Input that does not fit together, of any run; before any compute.
        FailedRunsError: Some runs have failed (a loss that is not finite); the others are finished.
        SystemExit: SIGTERM or Ctrl-C, after every state is saved; the code is 128 + the number of the signal.
    """
    runs: list[Train] = []
    for one in configs:
        runs += [one] if isinstance(one, Train) else load_many([one], overrides)
    _check_together(runs)
    return _trained(runs)


def _trained(configs: Sequence[Train]) -> list[Folder]:
    """The folders of the runs, all of which this process owns while it trains those that are not finished."""
    folders = [open_folder(config.out) for config in configs]
    with Watchdog() as watchdog, ExitStack() as stack:
        for config, folder in zip(configs, folders, strict=True):
            check_owner(folder, config)
            if is_main() and not finished(folder):
                stack.enter_context(owned(folder, "train"))
            check_owner(folder, config)  # again: another process may have written to it until it released the lock
        todo = [(c, f) for c, f in zip(configs, folders, strict=True) if not finished(f)]
        for folder in folders:
            if finished(folder):
                logger.info(f"{folder} is finished; nothing to do")
        if todo:
            _train(todo, watchdog)
    return folders


def _check_together(configs: Sequence[Train]) -> None:
    """Raises `UserError` for runs that cannot be trained in one process."""
    if not configs:
        raise UserError("there is no run to train, expected the config of at least one")
    places: dict[str, str] = {}
    for config in configs:
        place = config.out.rstrip("/") if is_bucket(config.out) else os.path.realpath(config.out)
        if place in places:
            raise UserError(f"two runs have one folder, {config.out}; write another out=... for each")
        places[place] = config.out
    for config in configs[1:]:
        if config.mesh != configs[0].mesh:
            raise UserError(
                f"{configs[0].out} has the mesh {_mesh(configs[0])}, {config.out} {_mesh(config)}; runs that are "
                "trained together share one: write the same mesh for all"
            )
    for what, which in {
        "profile_steps": [c.out for c in configs if c.profile_steps is not None],
        "loggers=[wandb]": [c.out for c in configs if "wandb" in c.loggers],
    }.items():
        if len(which) > 1:
            raise UserError(f"{what} is in {len(which)} runs ({', '.join(which)}), but one process has one; keep one")


def _mesh(config: Train) -> str:
    return f"data={config.mesh.data} expert={config.mesh.expert}"


def _train(todo: Sequence[tuple[Train, Folder]], watchdog: Watchdog) -> None:
    """Prepares all runs before it writes to one, then trains them."""
    built = _built(todo)
    mesh, names = built[0][0].mesh, _names([run.folder for run, _ in built])
    check_state([abstract_state(run.start, mesh) for run, _ in built], mesh)
    for run, _ in built:
        run.begin()
    with StopRequest() as stop, ProgressLines(names) as lines, ExitStack() as stack:
        due, turns = _Due(stop), []
        for name, (run, loader) in zip(names, built, strict=True):
            shown = partial(lambda name, _, *steps: lines.of(name, *steps), name)
            updates = run.updates(due, watchdog.progress, shown, beside=len(built) - 1)
            turns.append(_Turn(run, loader, stack.enter_context(closing(updates))))
        failed = _take_turns(turns, due)
    left = [turn for turn in turns if not turn.is_over]
    if left and stop.signal is not None:
        for turn in left:
            logger.info(stopped(turn.run.folder, stop.signal, turn.done))
        raise SystemExit(128 + stop.signal)
    if failed:
        raise FailedRunsError(failed, len(turns))


def _built(todo: Sequence[tuple[Train, Folder]]) -> list[tuple[Run, Turns]]:
    """The runs and their batches; a `UserError` says whose it is."""
    configs = [config for config, _ in todo]
    mesh = make_mesh(configs[0].mesh)
    built = []
    for (config, folder), store in zip(todo, sources(configs, mesh), strict=True):
        data = config.data
        try:
            prepared = prepare(config, mesh, store)
            loader = Turns(open_loader(config, store, mesh), mesh, (id(store), data.batch, data.seed, data.streams))
            built.append((Run(config, folder, prepared, loader), loader))
        except UserError as error:
            raise type(error)(f"{folder}: {error}") from error
    return built


def sources(configs: Sequence[Train], mesh: Mesh) -> list[Store | AbstractSource]:
    """What each run reads; one object for equal ones, and sources of one language model share its passes."""
    made: dict[str, Store | AbstractSource] = {}
    deepest: dict[str, AbstractSource] = {}
    for config in sorted(configs, key=_layer, reverse=True):  # the deepest first: it loads the most blocks
        if _key(config) in made:
            continue
        other = deepest.get(_key(config, but=LAYER)) if _layer(config) >= 0 else None
        found = (None if other is None else other.at(_layer(config))) or open_source(config, mesh)
        made[_key(config)] = found
        if isinstance(found, AbstractSource):
            deepest.setdefault(_key(config, but=LAYER), found)
    return [made[_key(config)] for config in configs]


def _key(config: Train, but: str | None = None) -> str:
    """What a run reads, without the argument `but` of its source."""
    live = config.data.live
    read = config.data.store if live is None else {name: value for name, value in live.items() if name != but}
    return json.dumps(read, sort_keys=True, default=repr)


def _layer(config: Train) -> int:
    """The layer of the residual stream that a run reads; -1 where its source has no such argument."""
    layer = (config.data.live or {}).get(LAYER)
    return layer if isinstance(layer, int) else -1


def _names(folders: Sequence[Folder]) -> list[str]:
    """Short names of the runs: those of their folders, or the paths where two have one name."""
    short = [folder.name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


class _Due:
    """Asked after each update of any run whether to stop; once True, it stays so, for every run ends by itself."""

    def __init__(self, stop: StopRequest):
        self._stop, self._updates, self.stopped = stop, 0, False

    def __call__(self, _: int) -> bool:
        self._updates += 1
        self.stopped = self.stopped or self._stop.due(self._updates)
        return self.stopped


class _Turn:
    """A run that takes turns; `done` updates are done, and it `is_over` when it is finished or has failed."""

    def __init__(self, run: Run, loader: Turns, updates: Generator[int, None, TrainState]):
        self.run, self.loader, self._updates = run, loader, updates
        self.done, self.is_over = 0, False

    @property
    def rows(self) -> int:
        """Rows that it has read."""
        return self.done * self.run.config.data.batch

    def advance(self) -> bool:
        """Up to the next update; True where there is one. The trained SAE is written after the last."""
        try:
            self.done = next(self._updates)
            return True
        except StopIteration as end:
            self.done = int(jax.device_get(end.value.step))
            if self.run.is_complete(end.value):
                self.run.export(end.value)
                self.is_over = True
            return False


def _take_turns(turns: Sequence[_Turn], due: _Due) -> dict[str, Exception]:
    """Runs all to their ends, or until a signal has stopped them; returns the errors of those that failed."""
    left = [turn for turn in turns if turn.advance()]  # makes or restores every state first
    share([turn.loader for turn in left])
    begun, failed = set[_Turn](), dict[str, Exception]()
    while left:
        turn = min(left, key=lambda turn: turn.rows)
        try:
            goes_on = (turn in begun or not due.stopped) and turn.advance()
        except Exception as error:
            # where processes share a run, the others know of a loss that is not finite alone
            if outcome(error) is None or (several() and not isinstance(error, DivergedError)):
                raise
            failed[str(turn.run.folder)], goes_on, turn.is_over = error, False, True
            for cause in filter(None, (error, error.__cause__)):
                traceback.clear_frames(cause.__traceback__)  # they hold the state of the run
            if len(left) > 1:
                logger.warning(f"{turn.run.folder} has ended, the other runs go on: {error}")
        begun.add(turn)
        if not goes_on:
            left.remove(turn)
            share_passes([turn.loader for turn in left])
    return failed
