import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec
from reference.filled import filled

from jhsae.constraint import ProjectAndRenormalize
from jhsae.data import UnitNorm
from jhsae.errors import UserError
from jhsae.losses import CrossOrthogonality, L1All, Objective, ParentsOnly, SquaredError
from jhsae.optimizer import adam
from jhsae.parallel.mesh import MeshShape, check_batch, make_mesh, shard_batch
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.schedule import Constant
from jhsae.sparsify import GumbelTopK, TopK
from jhsae.training.sharding import shard_state
from jhsae.training.step import StageModules, TrainState, make_step

BATCH, EMBED, EXPERTS, SUB, ATOMS = 16, 8, 8, 2, 3
MESHES = {"data 8": MeshShape(), "data 4 x expert 2": MeshShape(4, 2)}
# the logical axes split over `expert` lead in every array that has them
BY_EXPERT = ("router_enc", "router_dec", "down", "up", "atom_enc", "atom_dec", "b_enc", "b_atom")


def new(experts=EXPERTS):
    route = GumbelTopK(2, Constant(1.0))
    biases = ("encoder", "decoder")

    def make():
        return HierarchicalSAE(EMBED, experts, SUB, ATOMS, route, TopK(1), biases=biases, key=jax.random.key(0))

    return filled(make, scale=0.5)


def modules():
    terms = {"a": SquaredError(), "b": ParentsOnly(), "c": L1All(), "d": CrossOrthogonality()}
    return StageModules(Objective(terms, {"c": 1e-2}), Constant(1e-2), ProjectAndRenormalize(), UnitNorm())


def train(mesh, steps=3):
    """(losses, last state, how many programs each step compiled) on a mesh."""
    place = (lambda state: state) if mesh is None else (lambda state: shard_state(state, mesh))
    step = make_step(adam(), mesh=mesh)
    state = place(TrainState.init(new(), adam(), jax.random.key(0)))
    rng, rows, compiled, count = np.random.default_rng(0), [], [], [0]

    def listen(event, duration, **_):
        count[0] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    for _ in range(steps):
        batch = rng.normal(size=(BATCH, EMBED)).astype(np.float32)
        batch = jnp.asarray(batch) if mesh is None else shard_batch(batch, mesh)
        before = count[0]
        state, metrics = step((modules(), batch), state)
        compiled.append(count[0] - before)
        rows.append({name: float(value) for name, value in metrics.items()})
    jax.monitoring.unregister_event_duration_listener(listen)
    return rows, state, compiled


@pytest.fixture(scope="module")
def alone():
    return train(None)


@pytest.fixture(scope="module", params=MESHES)
def sharded(request):
    mesh = make_mesh(MESHES[request.param])
    return mesh, *train(mesh)


def test_every_layout_trains_alike(alone, sharded):
    """The same losses and metrics, with random routing, to 1e-5; and parameters that agree."""
    rows, state, _ = alone
    _, other_rows, other, _ = sharded
    for row, other_row in zip(rows, other_rows, strict=True):
        assert set(row) == set(other_row)
        for name in row:
            np.testing.assert_allclose(other_row[name], row[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(other.sae), jax.tree.leaves(state.sae), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_array_equal(other.usage.since_fired, state.usage.since_fired)


def split_over(array, mesh, *names):
    return array.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*names)), array.ndim)


def check_layout(state, mesh):
    moments = state.opt_state[3]
    everywhere = ("expert", "data", "host")
    for tree, names in ((state.sae, "expert"), (moments.mu, everywhere), (moments.nu, everywhere)):
        for name in BY_EXPERT:
            assert split_over(getattr(tree, name), mesh, names), name
        assert split_over(tree.b_dec, mesh)
    for array in (state.step, moments.count, state.key):
        assert split_over(array, mesh)


def test_experts_are_split_over_the_expert_axis_and_moments_follow(sharded):
    mesh, _, state, _ = sharded
    check_layout(state, mesh)
    per_device = {shard.data.shape for shard in state.sae.up.addressable_shards}
    assert per_device == {(EXPERTS // mesh.shape["expert"], SUB, EMBED)}


def test_the_first_layout_is_the_one_that_the_step_keeps(sharded):
    mesh, *_ = sharded
    check_layout(shard_state(TrainState.init(new(), adam(), jax.random.key(0)), mesh), mesh)


def test_the_step_is_compiled_once(sharded):
    """A layout that changed from one step to the next would compile it again."""
    *_, compiled = sharded
    assert compiled[0] >= 1 and compiled[1:] == [0] * (len(compiled) - 1)


def test_the_batch_is_split_over_the_data_axis():
    mesh = make_mesh(MeshShape(4, 2))
    rows = np.arange(BATCH * EMBED, dtype=np.float32).reshape(BATCH, EMBED)
    batch = shard_batch(rows, mesh)
    np.testing.assert_array_equal(batch, rows)
    assert split_over(batch, mesh, "data")
    assert {shard.data.shape for shard in batch.addressable_shards} == {(BATCH // 4, EMBED)}


def test_the_features_of_a_flat_sae_are_split_too():
    mesh = make_mesh(MeshShape(4, 2))
    sae = shard_state(filled(lambda: FlatSAE(EMBED, 12, TopK(3), key=jax.random.key(0))), mesh)
    assert split_over(sae.W_enc, mesh, "expert") and split_over(sae.b_enc, mesh, "expert")
    assert split_over(sae.b_dec, mesh)


def test_moving_a_state_changes_no_value():
    state = TrainState.init(new(), adam(), jax.random.key(0))
    moved = shard_state(state, make_mesh(MeshShape(4, 2)))
    for a, b in zip(jax.tree.leaves(moved.sae), jax.tree.leaves(state.sae), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape, sizes", [((None, 1), (8, 1)), ((None, 4), (2, 4)), ((2, 4), (2, 4)), ((1, 8), (1, 8))])
def test_the_mesh_covers_all_devices(shape, sizes):
    assert tuple(make_mesh(MeshShape(*shape)).shape[axis] for axis in ("data", "expert")) == sizes


def test_a_mesh_of_one_device_leaves_the_others_alone():
    assert make_mesh(MeshShape(data=1), devices=1).size == 1


@pytest.mark.parametrize(
    "data, expert, words",
    [
        (3, 1, "expert 1.*8"),
        (4, 4, "expert 4.*8"),
        (None, 3, "expert 3.*8"),
        (None, 16, "expert 16.*8"),
        (0, 1, "data is 0, expected at least 1"),
        (None, 0, "expert is 0, expected at least 1"),
        (None, -1, "expert is -1, expected at least 1"),
        (-2, -4, "data is -2, expected at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error_before_any_compute(data, expert, words):
    with pytest.raises(UserError, match=words):
        make_mesh(MeshShape(data, expert))


@pytest.mark.parametrize("batch, hint", [(12, 8), (20, 16), (5, 8)])
def test_a_batch_that_cannot_be_shared_is_an_error_that_says_what_can(batch, hint):
    with pytest.raises(UserError, match=rf"{batch}.*8 devices.*data\.batch={hint}"):
        check_batch(batch, make_mesh(MeshShape()))


def test_a_batch_that_can_be_shared_passes():
    for batch in (8, 64):
        check_batch(batch, make_mesh(MeshShape()))
    check_batch(12, make_mesh(MeshShape(4, 2)))


def test_axes_that_no_side_of_a_torus_has_are_split_over_several(monkeypatch):
    """As 8 x 8 of 4 x 4 x 4 TPU chips, for which JAX raises unless it may split a side."""
    whole, asked = mesh_utils.create_device_mesh, []

    def torus(sizes, devices, **words):
        asked.append(words)
        if not words:
            raise NotImplementedError("Failed to find assignment")
        return whole(sizes, devices)

    monkeypatch.setattr(mesh_utils, "create_device_mesh", torus)
    assert make_mesh(MeshShape(2, 4)).shape == {"host": 1, "data": 2, "expert": 4}
    assert asked == [{}, {"allow_split_physical_axes": True}]
