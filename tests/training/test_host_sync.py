"""The loop never waits for the device but for the metrics of the step before: no transfer that nobody asked for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae.constraint import ProjectAndRenormalize
from jhsae.data import Identity, make_loader, write_array
from jhsae.losses import Objective, SquaredError
from jhsae.optimizer import adam
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.sae import FlatSAE
from jhsae.schedule import Constant
from jhsae.sparsify import TopK
from jhsae.training.logs import NoLog
from jhsae.training.loop import Stage, run_stages
from jhsae.training.sharding import init_sharded, replicate
from jhsae.training.step import StageModules, TrainState, make_step

EMBED, BATCH = 4, 8


class Transfers:
    """Forbids implicit transfers; of every explicit read it notes (step of the metrics or None, steps begun).

    The guard of jax finds what goes to the device. On CPU it lets everything come back, so there the methods by which
    Python reads an array or waits for it are replaced.
    """

    READS = ("__float__", "__int__", "__bool__", "__index__", "__array__", "__iter__", "__format__", "item", "tolist")

    def __init__(self, monkeypatch):
        self.begun, self.reads, self.made, self.kept, self.explicit = 0, [], {}, [], False
        array, get = type(jnp.zeros(())), jax.device_get
        for name in (*self.READS, "block_until_ready"):
            monkeypatch.setattr(array, name, self.watched(name, getattr(array, name)))
        monkeypatch.setattr(jax, "block_until_ready", self.watched("block_until_ready", jax.block_until_ready))

        def device_get(tree):
            self.reads.append((self.made.get(id(jax.tree.leaves(tree)[0])), self.begun))
            self.explicit = True
            try:
                return get(tree)
            finally:
                self.explicit = False

        monkeypatch.setattr(jax, "device_get", device_get)

    def watched(self, name, method):
        def read(*args, **kwargs):
            assert self.explicit, f"the host waits for the device in {name}"
            return method(*args, **kwargs)

        return read

    def began(self, metrics):
        self.begun += 1
        self.made |= {id(value): self.begun for value in metrics.values()}
        self.kept.append(metrics)  # so that no other array takes its id


class Watched:
    """A jitted step that tells `transfers` of its calls, once compiled; `spoil` does something to what it became."""

    def __init__(self, step, transfers, spoil):
        self.step, self.transfers, self.spoil = step, transfers, spoil

    def lower(self, *arguments):
        return Watched(self.step.lower(*arguments), self.transfers, self.spoil)

    def compile(self):
        return Watched(self.step.compile(), self.transfers, self.spoil)

    def __call__(self, inputs, state):
        state, metrics = self.spoil(self.step)(inputs, state)
        self.transfers.began(metrics)
        return state, metrics


def guarded(tmp_path, monkeypatch, devices, spoil=lambda step: step):
    """Five real steps on batches of a store, compiled before they are guarded: the explicit reads and the rows."""
    rows = np.random.default_rng(0).normal(size=(256, EMBED)).astype(np.float32)
    store, mesh = write_array(tmp_path / "store", rows), make_mesh(MeshShape(data=devices), devices=devices)
    step = make_step(adam(), mesh=mesh)
    modules = StageModules(
        Objective({"reconstruction": SquaredError()}), Constant(0.1), ProjectAndRenormalize(), Identity()
    )
    modules = replicate(modules, mesh)

    sae = filled(lambda: FlatSAE(EMBED, 8, TopK(2), key=jax.random.key(0)))

    def fresh():
        state = init_sharded(lambda: TrainState.init(sae, adam(), jax.random.key(0)), mesh)
        return state, make_loader(store, BATCH, seed=0)

    def run(state, loader, step, log):
        run_stages(state, [Stage("a", 5, step, modules)], loader, mesh, log, log_every=1)

    run(*fresh(), step, NoLog())
    state, loader = fresh()
    transfers, log = Transfers(monkeypatch), NoLog()
    with jax.transfer_guard("disallow"):
        run(state, loader, Watched(step, transfers, spoil), log)
    return transfers.reads, log.rows


@pytest.mark.few(1)
@pytest.mark.parametrize("devices", [1, 8])
def test_the_host_waits_for_no_step_before_the_next_has_begun(tmp_path, monkeypatch, devices):
    """No transfer is implicit, and metrics are read when the following step is under way."""
    reads, rows = guarded(tmp_path, monkeypatch, devices)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    of_metrics = {read for read in reads if read[0] is not None}
    assert of_metrics == {(1, 2), (2, 3), (3, 4), (4, 5), (5, 5)}
    assert {begun for step, begun in reads if step is None} == {0, 5}, "others only before the first and after the last"


def reads_its_loss(step):
    def run(inputs, state):
        state, metrics = step(inputs, state)
        float(metrics["loss"])
        return state, metrics

    return run


def waits(step):
    return lambda inputs, state: jax.block_until_ready(step(inputs, state))


def calls_filter_jit(step):
    """It waits at every call, unless compiled ahead of time."""
    return lambda inputs, state: (eqx.filter_jit(lambda s: s.step + 1)(state), step(inputs, state))[1]


def sends_from_the_host(step):
    return lambda inputs, state: step((inputs[0], np.ones((BATCH, EMBED), np.float32)), state)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (reads_its_loss, "__float__"),
        (waits, "block_until_ready"),
        (calls_filter_jit, "block_until_ready"),
        (sends_from_the_host, "host-to-device"),
    ],
)
def test_a_loop_that_synchronises_is_found(tmp_path, monkeypatch, spoil, says):
    with pytest.raises(Exception, match=says):
        guarded(tmp_path, monkeypatch, 1, spoil)
