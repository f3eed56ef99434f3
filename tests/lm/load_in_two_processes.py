"""One of two processes with four devices each: loads a model over all eight and says what it read and computed."""

import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

from jhsae import lm
from jhsae.lm.weights import Weights
from jhsae.parallel.mesh import MeshShape, make_mesh


def main(address: str, rank: str, folder: str) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
    entries, original = [], Weights.read

    def counted(self, name, index, dtype):
        values = original(self, name, index, dtype)
        entries.append(values.size)
        return values

    Weights.read = counted
    model = lm.load(Path(folder) / "model", mesh=make_mesh(MeshShape(data=1, expert=8))).model
    ids = np.load(Path(folder) / "ids.npy")
    replicated = jax.sharding.NamedSharding(model.final_norm.sharding.mesh, jax.sharding.PartitionSpec())
    logits = eqx.filter_jit(lambda m, i: jax.lax.with_sharding_constraint(m(i), replicated))(model, ids)
    report = {"entries": sum(entries), "logits": np.asarray(logits.addressable_data(0)).tolist()}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
