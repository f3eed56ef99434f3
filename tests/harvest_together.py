"""One of two processes that harvest one store and then draw live batches; `test_harvest_processes` starts them."""

import sys
from pathlib import Path

import numpy as np

from jhsae.activations.live import LiveActivations
from jhsae.commands import harvest
from jhsae.config import load
from jhsae.data import CenterScale, TextFiles, Writer
from jhsae.parallel import distributed
from jhsae.parallel.mesh import MeshShape, make_mesh


class SmallShards(Writer):
    """Shards of 32 rows."""

    def __init__(self, *args, **options):
        super().__init__(*args, shard_rows=32, chunk_rows=8, **options)


def main(folder: Path, process: str) -> None:
    distributed.initialize()
    harvest.Writer = SmallShards
    harvest.run(load(harvest.Harvest, folder / "harvest.yaml"))
    text, mesh = TextFiles(str(folder / "text.txt")), make_mesh(MeshShape())
    live = LiveActivations(str(folder / "lm"), 1, text, 2000, 10, 8, 512, dtype="float32", mesh=mesh)
    mean = CenterScale().fit(live).mean
    batches = live.batches(32, 0)
    for step in range(3):
        shards = next(batches).addressable_shards
        rows = {str(shard.index[0].start or 0): np.asarray(shard.data) for shard in shards}
        np.savez(folder / f"live-{step}-{process}.npz", mean=mean, **rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
