"""``jhsae bench loader``: rows per second of the loader against tokens per second of our step.

Measured in turn, round by round: `loader` draws batches alone; `step` trains on one batch again and again; `both` draws
a batch, puts it on the device and trains on it, as the training loop does, while the loader's thread works ahead.
The step is input-bound where `both` is slower than `step`.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jhsae.bench import ours
from jhsae.bench.inputs import Build, Shape, random_rows
from jhsae.bench.measurement import Timings, check_rounds, check_writable, environment, interleave, load_average, write
from jhsae.bench.table import loader_table
from jhsae.data import Store, UnitNorm, make_loader, write_array
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape, make_mesh, shard_batch

BATCHES = 8  # drawn in one timing
PREFETCHED = 3  # batches at most; drawn before the clock starts
STORED = 16  # batches in the temporary store


@dataclass(frozen=True)
class LoaderBench:
    """Settings of ``jhsae bench loader``."""

    shape: Shape
    build: Build = field(default_factory=Build)
    repeats: int = 9
    seconds: float = 120.0


def command(words: Namespace) -> bool:
    """Runs the verb: measures, prints the table, writes the JSON."""
    check_writable(words.json)
    check_rounds(words.repeats, words.seconds)
    with _store(words) as store:
        words.embed = store.embed
        result = measure(LoaderBench(Shape.of(words), Build.of(words), words.repeats, words.seconds), store)
    print(loader_table(result))
    write(result, words.json)
    return True


@contextmanager
def _store(words: Namespace) -> Iterator[Store]:
    """The store that is named, or a temporary one of random rows."""
    if words.store is not None:
        store = Store.open(words.store)
        if words.embed not in (None, store.embed):
            raise UserError(f"--embed is {words.embed}, but {words.store} holds vectors of {store.embed}; leave it out")
        yield store
        return
    if words.embed is None:
        raise UserError("neither a store nor --embed was given; write the path of a store, or --embed 256")
    shape = Shape.of(words)
    with tempfile.TemporaryDirectory() as folder:
        rows = random_rows(STORED * shape.batch, shape.embed)
        yield write_array(Path(folder) / "store", rows, name="random rows", dtype="bfloat16")


def measure(config: LoaderBench, store: Store) -> dict[str, Any]:
    """Measures the three rates and returns plain data."""
    before, shape = load_average(), config.shape
    loader = make_loader(store, shape.batch, seed=0)
    mesh = make_mesh(MeshShape(data=1), devices=1)
    batch = shard_batch(next(loader), mesh)
    training = ours.Training(ours.faithful(shape, config.build, UnitNorm().fit(store)), batch)

    def draw(count: int = BATCHES) -> None:
        for _ in range(count):
            next(loader)

    def step() -> None:
        for _ in range(BATCHES):
            training.update(batch)
        training.wait()

    def both() -> None:
        for _ in range(BATCHES):
            training.update(shard_batch(next(loader), mesh))
        training.wait()

    prepare = {"loader": lambda: draw(PREFETCHED), "both": lambda: draw(PREFETCHED)}
    programs = {"loader": draw, "step": step, "both": both}
    times = interleave(programs, config.repeats, config.seconds, prepare=prepare)
    return {
        "verb": "bench loader",
        "shape": asdict(shape),
        "settings": asdict(config.build) | {"batches": BATCHES, "rows": store.rows, "dtype": store.manifest.dtype},
        **_rates(times, BATCHES * shape.batch, store.embed * jnp.dtype(store.manifest.dtype).itemsize),
        "rounds": times.rounds,
        "seconds": times.seconds,
        "load_before": before,
        "load_after": load_average(),
        **environment(),
    }


def _rates(times: Timings, rows: int, row_bytes: int) -> dict[str, Any]:
    loader = times.per_second("loader", rows)
    return {
        "loader_rows_per_second": asdict(loader),
        "loader_gb_per_second": loader.median * row_bytes / 1e9,
        "step_tokens_per_second": asdict(times.per_second("step", rows)),
        "both_tokens_per_second": asdict(times.per_second("both", rows)),
        "loader_over_step": asdict(times.ratio("step", "loader")),
        "both_over_step": asdict(times.ratio("step", "both")),
    }
