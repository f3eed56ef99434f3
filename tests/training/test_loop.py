import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae.constraint import ProjectAndRenormalize
from jhsae.data import Identity
from jhsae.losses import Objective, SquaredError
from jhsae.losses.base import AbstractTerm
from jhsae.optimizer import adam
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.sae import FlatSAE
from jhsae.schedule import Constant
from jhsae.sparsify import GumbelTopK, TopK
from jhsae.training.loop import DivergedError, Hooks, Stage, run_stages
from jhsae.training.step import StageModules, TrainState, make_step

EMBED, BATCH = 4, 8
MESH = make_mesh(MeshShape(data=1), devices=1)


def sae(part=None):
    part = TopK(2) if part is None else part
    return filled(lambda: FlatSAE(EMBED, 6, part, key=jax.random.key(0)))


def modules(rate=0.1, terms=None):
    objective = Objective({"reconstruction": SquaredError()} if terms is None else terms)
    return StageModules(objective, Constant(rate), ProjectAndRenormalize(), Identity())


def batches(skip=0):
    rng = np.random.default_rng(0)
    while True:
        batch = rng.normal(size=(BATCH, EMBED)).astype(np.float32)
        if skip == 0:
            yield batch
        skip = max(0, skip - 1)


class Events:
    """Stands for device, log and checkpoints: notes what happens in which order. `loss` maps a step to its loss."""

    def __init__(self, loss=None):
        self.loss, self.happened = loss or {}, []

    def step(self, inputs, state):
        number = int(state.step) + 1
        self.happened.append(("step", number))
        metrics = {"loss": self.loss.get(number, 1.0 / number), "explained_variance": 0.5, "l0": 2.0, "grad_norm": 1.0}
        state = eqx.tree_at(lambda s: s.step, state, state.step + 1)
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    def write(self, step, stage, metrics, tokens_per_step):
        assert tokens_per_step == BATCH
        np.testing.assert_allclose(metrics["loss"], 1.0 / step, rtol=1e-6)
        self.happened.append(("row", step, stage))

    def save(self, state):
        self.happened.append(("save", int(state.step)))

    def run(self, lengths=(7,), start=0, hooks=None, **arguments):
        stages = [Stage(f"stage {i}", steps, self.step, modules()) for i, steps in enumerate(lengths)]
        state = TrainState.init(sae(), adam(), jax.random.key(0))
        state = eqx.tree_at(lambda s: s.step, state, jnp.asarray(start, jnp.int32))
        return run_stages(
            state, stages, batches(), MESH, self, hooks=Hooks(save=self.save, **(hooks or {})), **arguments
        )

    def rows(self):
        return [event[1] for event in self.happened if event[0] == "row"]

    def saves(self):
        return [event[1] for event in self.happened if event[0] == "save"]


@pytest.mark.parametrize("every, due", [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 3, 6, 7]), (10, [1, 7]), (7, [1, 7])])
def test_every_due_row_is_logged_once_and_in_order(every, due):
    events = Events()
    state = events.run(log_every=every)
    assert events.rows() == due and int(state.step) == 7
    assert [e[1] for e in events.happened if e[0] == "step"] == list(range(1, 8))


def test_a_row_is_read_while_the_next_step_runs():
    events = Events()
    events.run(log_every=1)
    order = [event[:2] for event in events.happened]
    for step in range(1, 7):
        assert order.index(("row", step)) == order.index(("step", step + 1)) + 1
    assert order[-2:] == [("row", 7), ("save", 7)]


def test_a_checkpoint_comes_after_every_row_it_covers_and_before_the_next_step():
    events = Events()
    events.run(log_every=1, checkpoint_every=3)
    assert events.saves() == [3, 6, 7]
    order = [event[:2] for event in events.happened]
    for step in events.saves():
        at = order.index(("save", step))
        assert [e[1] for e in order[:at] if e[0] == "row"] == list(range(1, step + 1))
        assert ("step", step + 1) not in order[:at]


def test_the_last_state_is_saved_once_even_when_a_checkpoint_is_due_there():
    events = Events()
    events.run((6,), checkpoint_every=3)
    assert events.saves() == [3, 6]


def test_stages_switch_at_their_ends():
    events = Events()
    events.run((2, 1, 3), log_every=1)
    assert [e[1:] for e in events.happened if e[0] == "row"] == [
        (1, "stage 0"),
        (2, "stage 0"),
        (3, "stage 1"),
        (4, "stage 2"),
        (5, "stage 2"),
        (6, "stage 2"),
    ]


@pytest.mark.parametrize(
    "start, steps, stages", [(1, [2, 3, 4], ["stage 0", "stage 1", "stage 1"]), (2, [3, 4], ["stage 1"] * 2)]
)
def test_a_resumed_run_does_what_is_left_in_the_right_stage(start, steps, stages):
    events = Events()
    events.run((2, 2), start=start, log_every=1, checkpoint_every=2)
    assert [e[1] for e in events.happened if e[0] == "step"] == steps
    assert [e[2] for e in events.happened if e[0] == "row"] == stages


def test_a_finished_run_does_nothing():
    events = Events()
    assert int(events.run((2, 2), start=4).step) == 4
    assert events.happened == []


def test_asked_to_stop_it_saves_what_is_done_and_returns():
    events = Events()
    state = events.run((4, 3), log_every=1, checkpoint_every=3, hooks={"due": lambda step: step == 5})
    assert int(state.step) == 5 and events.saves() == [3, 5]
    assert events.happened[-2:] == [("row", 5, "stage 1"), ("save", 5)]


def test_a_stop_at_the_end_of_a_stage_starts_no_other():
    events = Events()
    assert int(events.run((4, 3), hooks={"due": lambda step: step == 4}).step) == 4 and events.saves() == [4]


def test_every_step_that_the_device_finished_is_heard_of():
    heard = []
    Events().run(hooks={"on_step": lambda: heard.append(None)})
    assert len(heard) == 7


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [1, 4, 6, 7])
def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_is_never_saved(loss, at):
    events = Events({at: loss})
    with pytest.raises(DivergedError, match=rf"step {at} \(stage 'stage 0'\)") as raised:
        events.run(log_every=1, checkpoint_every=3)
    assert raised.value.step == at
    assert events.rows() == list(range(1, at))
    assert events.saves() == [step for step in (3, 6) if step < at]


class Kink(AbstractTerm):
    """0, with a NaN gradient: sqrt at 0."""

    def __call__(self, sae, forward):
        return jnp.sqrt(jnp.sum(0.0 * sae.W_dec))


def test_parameters_that_are_not_finite_are_never_saved():
    """A finite loss with a gradient of NaN: the checkpoint of that very step must not replace a good one."""
    stage = Stage("a", 3, make_step(adam()), modules(terms={"reconstruction": SquaredError(), "kink": Kink()}))
    saved = []

    def save(state):
        saved.append(all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.sae)))

    state = TrainState.init(sae(), adam(), jax.random.key(0))
    with pytest.raises(DivergedError):
        run_stages(state, [stage], batches(), MESH, Rows(), checkpoint_every=1, hooks=Hooks(save=save))
    assert all(saved), "a state with NaN parameters was saved"


class Rows:
    """Keeps the rows."""

    def __init__(self):
        self.rows = []

    def write(self, step, stage, metrics, tokens_per_step):
        self.rows.append({"step": step, "stage": stage, **metrics})


def test_real_steps_resume_to_the_same_rows_and_the_same_state():
    """Two stages, noisy routing; stopped in the second stage and continued from what was saved there."""
    start = sae(GumbelTopK(2, Constant(1.0)))
    step = make_step(adam())
    stages = [Stage("a", 3, step, modules(0.1)), Stage("b", 4, step, modules(0.01))]
    saved, whole = {}, Rows()

    def save(state):
        saved[int(state.step)] = jax.tree.map(lambda a: jnp.array(a, copy=True), state)

    fresh = TrainState.init(start, adam(), jax.random.key(0))
    last = run_stages(fresh, stages, batches(), MESH, whole, log_every=1, checkpoint_every=5, hooks=Hooks(save=save))
    np.testing.assert_allclose([row["learning_rate"] for row in whole.rows], [0.1] * 3 + [0.01] * 4, rtol=1e-6)
    resumed = Rows()
    again = run_stages(saved[5], stages, batches(skip=5), MESH, resumed, log_every=1)
    assert resumed.rows == whole.rows[5:] and [row["step"] for row in resumed.rows] == [6, 7]
    for a, b in zip(jax.tree.leaves(again.sae), jax.tree.leaves(last.sae), strict=True):
        assert a.tobytes() == b.tobytes()
