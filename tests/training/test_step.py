import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled
from reference.jaxprs import primitives

from jhsae.constraint import ProjectAndRenormalize
from jhsae.data import Identity, UnitNorm
from jhsae.errors import UserError
from jhsae.leaf import matching
from jhsae.losses import CrossOrthogonality, L1Active, Objective, ParentsOnly, SquaredError
from jhsae.losses.base import SAMPLED, AbstractTerm
from jhsae.optimizer import adam
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.schedule import Linear
from jhsae.sparsify import GumbelTopK, TopK
from jhsae.training.step import StageModules, TrainState, make_step
from jhsae.usage import Context

BATCH, EMBED, EXPERTS, SUB, ATOMS, WINDOW = 16, 8, 6, 2, 3, 3
FEATURES = EXPERTS * (1 + ATOMS)
ALWAYS = {"loss", "explained_variance", "l0", "learning_rate", "grad_norm", "dead"} | SAMPLED
TERMS = {"reconstruction": SquaredError(), "parents_only": ParentsOnly(), "cross": CrossOrthogonality()}
WEIGHTS = {"parents_only": 0.1, "cross": Linear(0.0, 0.5, 4)}
RATE = Linear(1e-2, 2e-2, 10)
traces = []


class CountTraces(AbstractTerm):
    """0; notes every time it is traced."""

    def __call__(self, sae, forward):
        traces.append(1)
        return jnp.zeros(())


def hierarchical(route=None):
    route = TopK(2) if route is None else route
    biases = ("encoder", "decoder")

    def make():
        return HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, route, TopK(1), biases=biases, key=jax.random.key(0))

    return filled(make, scale=0.5)


def flat():
    return filled(lambda: FlatSAE(EMBED, 12, TopK(3), key=jax.random.key(0)))


def modules(terms=None, weights=None, normalizer=None):
    objective = Objective(TERMS if terms is None else terms, WEIGHTS if terms is None else weights)
    return StageModules(objective, RATE, ProjectAndRenormalize(), normalizer or Identity())


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(BATCH, EMBED)), jnp.float32) for _ in range(count)]


def train(step, sae, count, *, modules, seed=0, state=None):
    """(last state, list of metrics as floats) after `count` updates in all."""
    state = TrainState.init(sae, adam(), jax.random.key(seed)) if state is None else state
    rows = []
    for batch in batches(count)[int(state.step) :]:
        state, metrics = step((modules, batch), state)
        rows.append({name: float(value) for name, value in metrics.items() if name not in SAMPLED})
    return state, rows


@pytest.fixture(scope="module")
def step():
    return make_step(adam(), clip=0.75, dead_window=WINDOW)


@pytest.fixture(scope="module")
def noisy(step):
    """(step, modules, SAE) with random routing."""
    return step, modules(), hierarchical(GumbelTopK(2, Linear(1.5, 0.7, 5)))


def test_metrics_are_those_of_the_forward_pass_before_the_update(step):
    sae, batch, part = hierarchical(), batches(1)[0], modules()
    _, metrics = step((part, batch), TrainState.init(sae, adam(), jax.random.key(0)))
    forward = eqx.filter_jit(sae.forward)(batch, Context())
    x, x_hat = np.asarray(batch, np.float64), np.asarray(forward.x_hat, np.float64)
    want = {
        "reconstruction": ((x - x_hat) ** 2).sum(1).mean(),
        "parents_only": ((x - np.asarray(forward.x_hat_parents)) ** 2).sum(1).mean(),
        "explained_variance": 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(),
        "l0": (np.asarray(forward.codes.dense()) != 0).sum(1).mean(),
        "learning_rate": 1e-2,
        "dead": 0.0,
    }
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], want["reconstruction"] + 0.1 * want["parents_only"], rtol=1e-4)
    assert set(metrics) == ALWAYS | set(TERMS)
    assert all(value.shape == () for value in metrics.values())
    assert all(np.isfinite(value) != (name in SAMPLED) for name, value in metrics.items()), "no window is complete yet"


def test_weights_and_rate_follow_their_schedules_in_one_program(step):
    traces.clear()
    part = modules(TERMS | {"count": CountTraces()}, WEIGHTS)
    _, rows = train(step, hierarchical(), 5, modules=part)
    for number, row in enumerate(rows):
        weighted = row["reconstruction"] + 0.1 * row["parents_only"] + 0.125 * number * row["cross"]
        np.testing.assert_allclose(row["loss"], weighted, rtol=1e-5)
        np.testing.assert_allclose(row["learning_rate"], 1e-2 + 1e-3 * number, rtol=1e-5)
    assert sum(traces) == 1, "the step was traced more than once"


def test_training_lowers_the_loss_and_keeps_the_constraint(step):
    same = [batches(1)[0]] * 30
    state, part = TrainState.init(hierarchical(), adam(), jax.random.key(0)), modules()
    losses = []
    for batch in same:
        state, metrics = step((part, batch), state)
        losses.append(float(metrics["reconstruction"]))
    assert losses[-1] < 0.6 * losses[0]
    np.testing.assert_allclose(np.linalg.norm(state.sae.router_dec, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(state.sae.atom_dec, axis=-1), 1.0, rtol=1e-5)


def test_the_step_counter_counts_updates_and_the_key_stays(step):
    state, _ = train(step, hierarchical(), 3, modules=modules(), seed=5)
    assert int(state.step) == 3 and state.step.dtype == jnp.int32
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(5)))
    assert int(state.opt_state[3].count) == 3


def test_the_step_donates_its_state_and_nothing_of_the_caller(step):
    sae, key, part, batch = hierarchical(), jax.random.key(0), modules(), batches(1)[0]
    before = jax.tree.map(np.asarray, sae)
    state = TrainState.init(sae, adam(), key)
    new, _ = step((part, batch), state)
    assert state.sae.up.is_deleted(), "the old state's memory is not reused"
    with pytest.raises((RuntimeError, ValueError), match=r"deleted|donated"):
        step((part, batch), state)
    for mine, copy in zip(jax.tree.leaves(sae), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(mine, copy)
    assert not batch.is_deleted()
    jax.random.key_data(key).block_until_ready()  # the caller's key can still be read
    step((part, batch), new)


def test_an_sae_whose_arrays_are_shared_can_be_trained(step):
    """Encoders and decoders start as one buffer; donating it twice would fail."""
    sae = hierarchical()
    shared = eqx.tree_at(lambda s: s.router_enc, sae, sae.router_dec)
    state, _ = train(step, shared, 2, modules=modules())
    assert (np.asarray(state.sae.router_enc) != np.asarray(state.sae.router_dec)).any()


def same(a, b):
    """Whether two trees are equal bit for bit."""

    def bits(leaf):
        return np.asarray(
            jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        ).tobytes()

    return [bits(x) for x in jax.tree.leaves(a)] == [bits(x) for x in jax.tree.leaves(b)]


def test_two_runs_are_bit_identical_and_seeds_differ(noisy):
    step, part, sae = noisy
    one, two, other = (train(step, sae, 4, modules=part, seed=seed) for seed in (0, 0, 1))
    assert same(one[0], two[0]) and one[1] == two[1]
    assert one[1] != other[1]


def test_a_run_that_is_interrupted_continues_bit_for_bit(noisy):
    step, part, sae = noisy
    whole, rows = train(step, sae, 5, modules=part)
    half, first = train(step, sae, 2, modules=part)
    rest, second = train(step, sae, 5, modules=part, state=half)
    assert same(whole, rest) and rows == first + second


def test_every_step_draws_its_own_noise(noisy):
    step, part, sae = noisy
    errors = set()
    for number in (0, 5, 6, 7):  # the temperature is constant from step 5 on
        state = TrainState.init(sae, adam(), jax.random.key(0))
        state = eqx.tree_at(lambda s: s.step, state, jnp.asarray(number, jnp.int32))
        errors.add(float(step((part, batches(1)[0]), state)[1]["reconstruction"]))
    assert len(errors) == 4


def test_usage_counts_the_steps_since_each_feature_fired(step):
    state, part = TrainState.init(hierarchical(), adam(), jax.random.key(0)), modules()
    codes = eqx.filter_jit(lambda sae, x: sae.encode(x).dense())
    waited = np.zeros(FEATURES, int)
    rng = np.random.default_rng(1)
    for number in range(6):
        optimizer = rng.normal(size=EMBED)  # few features fire on copies of one token
        batch = jnp.asarray(np.tile(optimizer, (BATCH, 1)), jnp.float32)
        fired = (np.asarray(codes(state.sae, batch)) != 0).any(0)
        waited = np.where(fired, 0, waited + 1)
        state, metrics = step((part, batch), state)
        np.testing.assert_array_equal(state.usage.since_fired, waited, err_msg=f"step {number}")
        np.testing.assert_allclose(metrics["dead"], (waited >= WINDOW).mean(), rtol=1e-6)
    assert 0 < (waited >= WINDOW).mean() < 1


class Forbidden(AbstractTerm):
    def __call__(self, sae, forward):
        raise AssertionError("a term of weight 0 was computed")


def shapes(step, part, batch):
    """The shapes of the next state and of the metrics: the step is traced, not compiled."""
    return eqx.filter_eval_shape(step, (part, batch), TrainState.init(flat(), adam(), jax.random.key(0)))


def test_a_term_of_weight_zero_is_neither_computed_nor_reported(step):
    part = modules({"reconstruction": SquaredError(), "off": Forbidden()}, {"off": 0.0})
    _, metrics = shapes(step, part, batches(1)[0])
    assert set(metrics) == ALWAYS | {"reconstruction"}


def test_stages_may_weigh_and_freeze_differently(step):
    """One step per stage: the second has another weight of a term and other live leaves."""
    terms = {"reconstruction": SquaredError(), "l1": L1Active()}
    sae = flat()
    state, (row,) = train(step, sae, 1, modules=modules(terms, {"l1": 0.5}))
    np.testing.assert_allclose(row["loss"], row["reconstruction"] + 0.5 * row["l1"], rtol=1e-5)
    middle = jax.tree.map(np.asarray, state.sae)
    second = make_step(adam(), matching(sae, ["W_*"]), clip=None)
    state, (row,) = train(second, sae, 2, modules=modules(terms, {"l1": 0.01}), state=state)
    np.testing.assert_allclose(row["loss"], row["reconstruction"] + 0.01 * row["l1"], rtol=1e-5)
    assert state.sae.W_dec.tobytes() == middle.W_dec.tobytes()
    assert state.sae.W_enc.tobytes() == middle.W_enc.tobytes()
    assert state.sae.b_dec.tobytes() != middle.b_dec.tobytes()


def test_the_normaliser_is_applied_before_the_sae(step):
    big = [100.0 * batch for batch in batches(1)]
    part = modules({"reconstruction": SquaredError()}, {}, normalizer=UnitNorm())
    rows = []
    for batch in (batches(1)[0], big[0]):
        _, metrics = step((part, batch), TrainState.init(flat(), adam(), jax.random.key(0)))
        rows.append(float(metrics["loss"]))
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4)


def test_half_precision_batches_are_trained_in_float32(step):
    state, metrics = shapes(step, modules({"reconstruction": SquaredError()}, {}), batches(1)[0].astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.sae, metrics))} == {jnp.dtype("float32")}


def test_nothing_in_the_step_waits_for_the_host(step):
    """No implicit transfer to a running step, and no callback to the host inside its program."""
    part, batch = modules(), batches(1)[0]
    state = TrainState.init(hierarchical(), adam(), jax.random.key(0))
    with jax.transfer_guard("disallow"):
        state, metrics = step((part, batch), state)
        state, metrics = step((part, batch), state)
    assert np.isfinite(float(metrics["loss"]))
    arrays, static = eqx.partition(((part, batch), state), eqx.is_array)
    body = jax.make_jaxpr(lambda a: eqx.filter(step.__wrapped__(*eqx.combine(a, static)), eqx.is_array))(arrays)
    assert not [name for name in primitives(body) if "callback" in name or "infeed" in name or "outfeed" in name]


@pytest.mark.parametrize("name", ["loss", "dead", "learning_rate", "step", "stage"])
def test_a_term_may_not_take_the_name_of_another_column(step, name):
    """Its value would be logged in the place of the other, or not at all."""
    with pytest.raises(UserError, match=name):
        shapes(step, modules({"reconstruction": SquaredError(), name: L1Active()}, {name: 0.1}), batches(1)[0])


@pytest.mark.parametrize("sae", [hierarchical(), flat()], ids=["hierarchical", "flat"])
def test_bfloat16_products_move_the_loss_by_less_than_their_rounding(sae):
    """Operands have 8 bits; parameters, moments and metrics stay float32."""
    terms = {"reconstruction": SquaredError(), "l1": L1Active()}
    losses = {}
    for precision in ("float32", "bfloat16"):
        state, rows = train(make_step(adam(), precision=precision), sae, 6, modules=modules(terms, {"l1": 1e-3}))
        losses[precision] = np.array([row["loss"] for row in rows])
        assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(eqx.filter(state.sae, eqx.is_inexact_array)))
    assert not np.array_equal(losses["bfloat16"], losses["float32"])
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=2**-8)


def test_the_first_moment_may_be_bfloat16():
    _, exact = train(make_step(adam()), flat(), 6, modules=modules({"reconstruction": SquaredError()}))
    optimizer = adam(momentum="bfloat16")
    state = TrainState.init(flat(), optimizer, jax.random.key(0))
    assert {a.dtype.name for a in jax.tree.leaves(eqx.filter(state.opt_state, eqx.is_inexact_array))} == {
        "float32",
        "bfloat16",
    }
    _, rounded = train(
        make_step(optimizer), flat(), 6, modules=modules({"reconstruction": SquaredError()}), state=state
    )
    np.testing.assert_allclose([r["loss"] for r in rounded], [r["loss"] for r in exact], rtol=2**-8)
