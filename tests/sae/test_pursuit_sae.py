"""The SAE without an encoder: its codes, its gradients, its budgets, and its training."""

import json
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import AxisType
from reference.pursuit import pursuit
from scipy.optimize import nnls

import jhsae
from jhsae import config, ops
from jhsae.codes import Codes
from jhsae.constraint import AncestorsOut
from jhsae.errors import UserError
from jhsae.evals.truth import latent_parents
from jhsae.losses import Objective, Prefix, SquaredError
from jhsae.sae import AllRows, PursuitSAE, Screened
from jhsae.sparsify import ExactL0, MeanL0, Threshold
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train
from jhsae.training.run import train
from jhsae.usage import Context, FeatureStats

EMBED, LEVELS = 12, (6, 3, 2)


def sae(budget=None, levels=LEVELS, **options):
    budget = Threshold(0.4, 6) if budget is None else budget
    made = PursuitSAE(EMBED, levels, budget, key=jax.random.key(0), **options)
    return eqx.tree_at(lambda s: s.b_dec, made, 0.1 * jnp.arange(EMBED))


def tokens(count=24, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, EMBED)), jnp.float32)


forward = eqx.filter_jit(lambda sae, x: sae.forward(x, Context()))


@pytest.mark.parametrize("candidates", [AllRows(), Screened(2, 6)], ids=["all", "screened"])
def test_forward_is_the_pursuit_of_the_centred_token_and_a_linear_decoder(candidates):
    made, x = sae(candidates=candidates, most_children=1), tokens()
    found = forward(made, x)
    rows, centred = np.asarray(made.rows, float), np.asarray(x - made.b_dec, float)
    want, _, _ = pursuit(centred, rows, made.latent_parents(), 0.4, 6, most_children=1)
    np.testing.assert_allclose(found.codes.dense(), want, atol=2e-5)
    np.testing.assert_allclose(found.x_hat, want @ rows + np.asarray(made.b_dec), atol=2e-5)
    np.testing.assert_allclose(made.decode(found.codes), found.x_hat, atol=1e-6)
    np.testing.assert_allclose(found.pre, centred @ rows.T, atol=1e-5)
    assert found.encoder.size == made.features == 6 + 18 + 36 and made.embed == EMBED


def test_the_parents_are_a_forest_of_the_right_levels():
    made = sae()
    parents = latent_parents(made)
    np.testing.assert_array_equal(parents[:6], -1)
    np.testing.assert_array_equal(parents[6:24], np.repeat(np.arange(6), 3))
    np.testing.assert_array_equal(parents[24:], np.repeat(np.arange(6, 24), 2))
    assert (latent_parents(sae(levels=(40,))) == -1).all()
    assert made.tree.levels == made.levels and sae(levels=(40,)).tree is None


def test_gradients_are_those_of_decoding_at_codes_that_are_held():
    """With the prefixes' codes held too; and at values that solve least squares they are those of the whole loss."""
    made, x = sae(sweeps=300), tokens()
    objective = Objective({"error": SquaredError(), "prefix": Prefix()}, {"prefix": 0.3})
    found = forward(made, x)
    indices = found.codes.indices
    dense = [Codes(v, indices, made.features).dense() for v in (found.codes.values, *found.prefixes.swapaxes(0, 1))]

    def plain(rows, b_dec):
        errors = [jnp.mean(jnp.sum((x - codes @ rows - b_dec) ** 2, axis=1)) for codes in dense]
        return errors[0] + 0.3 * (errors[1] + errors[2])

    def whole(made):
        return objective(made, made.forward(x, Context()), 0)[0]

    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(whole))(made)
    want, (d_rows, d_bias) = jax.value_and_grad(plain, (0, 1))(made.rows, made.b_dec)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(grads.rows, d_rows, atol=1e-5)
    np.testing.assert_allclose(grads.b_dec, d_bias, atol=1e-5)
    assert not grads.budget.threshold

    step, along = 1e-3, jax.random.normal(jax.random.key(5), made.rows.shape) * (found.codes.fired() > 0)[:, None]
    moved = [
        plain_error(np.asarray(x - made.b_dec, float), np.asarray(made.rows + sign * step * along, float), dense[0])
        for sign in (-1, 1)
    ]
    error_grads = jax.grad(lambda rows: jnp.mean(jnp.sum((x - dense[0] @ rows - made.b_dec) ** 2, axis=1)))(made.rows)
    assert (moved[1] - moved[0]) / (2 * step) == pytest.approx(float(jnp.sum(error_grads * along)), rel=2e-2)


def plain_error(x, rows, codes):
    """The mean squared error of the best non-negative values on the support of `codes`."""
    total = 0.0
    for token, z in zip(x, np.asarray(codes), strict=True):
        on = np.flatnonzero(z)
        total += nnls(rows[on].T, token)[1] ** 2 if len(on) else token @ token
    return total / len(x)


def test_eight_devices_give_the_loss_and_the_gradients_of_one():
    made, x = sae(levels=(8, 3, 1)), tokens(16)
    mesh = jax.make_mesh((2, 4, 1), ops.SHARDS, axis_types=(AxisType.Auto,) * 3)
    objective = Objective({"error": SquaredError(), "prefix": Prefix()})

    def run(mesh):
        def loss(made):
            with ops.sharded_over(mesh):
                found = made.forward(x, Context())
                return objective(made, found, 0)[0], found.codes

        return eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(made)

    for a, b in zip(jax.tree.leaves(run(None)), jax.tree.leaves(run(mesh)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_empty_slots_are_never_picked_never_dead_and_stay_empty():
    made = sae(filled=2)
    assert np.asarray(made.occupied).tolist() == [True] * 24 + [False] * 36
    found = forward(made, tokens())
    assert found.codes.fired()[24:].sum() == 0 < found.codes.fired()[6:24].sum()
    usage = FeatureStats.init(made.features)
    for _ in range(3):
        usage = made.observe(usage, found.codes, 10)
    assert not usage.dead(1)[24:].any() and usage.dead(3)[:24].any()
    trained, _ = jhsae.fit(made, tokens(64), steps=3, batch=32, constraint=AncestorsOut())
    assert not np.any(trained.rows[24:]) and np.any(trained.rows[:24] != made.rows[:24])


@pytest.mark.slow
def test_it_trains_by_fit_to_its_l0_and_settles_at_a_threshold():
    rows = runs.activations(6144)
    made = PursuitSAE(runs.EMBED, [12, 2], MeanL0(3.0), key=jax.random.key(0))
    terms = {"error": SquaredError(), "prefix": Prefix()}
    trained, log = jhsae.fit(
        made, rows[:4096], steps=150, batch=256, learning_rate=8e-3, constraint=AncestorsOut(),
        objective=terms, weights={"prefix": 0.2},
    )  # fmt: skip
    assert log[-1]["explained_variance"] > max(0.7, log[0]["explained_variance"])
    assert isinstance(trained.budget, Threshold) and trained.budget.most == 6
    held_out = trained.encode(rows[4096:]).l0().mean()
    assert held_out == pytest.approx(3, rel=0.05)
    up = np.asarray(trained.rows)[trained.latent_parents()[12:]]
    assert np.abs(np.sum(up * np.asarray(trained.rows[12:]), axis=1)).max() < 1e-5


def test_a_budget_that_is_not_met_is_reported_once_the_run_is_done(caplog):
    """Four rows, of which a token has a positive product with about two, cannot be four."""
    made = PursuitSAE(EMBED, [4], MeanL0(4.0, 4), key=jax.random.key(0))
    trained, log = jhsae.fit(made, tokens(64), steps=3, batch=64)
    assert log[-1]["l0"] < 3.6 and "asked for 4 active features per token" in caplog.text
    assert float(trained.budget.threshold) == 0
    caplog.clear()
    jhsae.fit(eqx.tree_at(lambda s: s.budget, made, MeanL0(1.0, 2)), tokens(64), steps=3, batch=64)
    assert not caplog.text


def test_a_threshold_that_collapses_for_want_of_rows_ends_the_run():
    made = PursuitSAE(EMBED, [4], MeanL0(4.0, 4, threshold_rate=1.0), key=jax.random.key(0))
    with pytest.raises(UserError, match="after 3 steps, though the threshold has fallen to 0: too few rows compete"):
        jhsae.fit(made, tokens(64), steps=3, batch=64)
    fed = eqx.tree_at(lambda s: s.budget, made, MeanL0(1.0, 2, threshold_rate=1.0))
    assert jhsae.fit(fed, tokens(64), steps=3, batch=64)[1][-1]["l0"] > 0.9


def part(name, **arguments):
    return {"_target_": f"jhsae.{name}", **arguments}


def test_it_trains_resumes_and_loads_by_the_verb_byte_for_byte(tmp_path):
    """On several devices, with every part of a structure step; stopped after 8 of 16 steps and continued."""
    runs.store(tmp_path / "store")
    changes = {
        "sae": part(
            "sae.PursuitSAE", embed=runs.EMBED, levels=[8, 2, 1], budget=part("sparsify.MeanL0", k=3), filled=2
        ),
        "objective": {"error": part("losses.SquaredError"), "prefix": part("losses.Prefix")},
        "weights": {"prefix": part("schedule.WarmupDecay", peak=1.0, steps=14, decay=6)},
        "init": [],
        "constraint": part("constraint.AncestorsOut"),
        "resampling": part(
            "resampling.Several",
            parts=[
                part("resampling.RestartDead", every=4, until=12),
                part("resampling.MergeAlike", cosine=0.5, every=4, until=12),
                part("resampling.GrowLevel", step=10),
            ],
        ),
        "stages": [{"name": "all", "steps": 16, "learning_rate": 1e-2}],
        "dead_window": 3,
        "feature_sampling_window": 4,
        "checkpoint_every": 8,
        "mesh": {"data": 8},
    }
    whole = config.load(Train, runs.train_config(tmp_path, tmp_path / "store", tmp_path / "whole", **changes))
    train(whole)
    half = config.load(Train, runs.train_config(tmp_path, tmp_path / "store", tmp_path / "half", **changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jhsae.training.run.StopRequest.due", lambda self, step: _stop(self, step))
        with pytest.raises(SystemExit):
            train(half)
    train(half)
    whole_bytes, half_bytes = ((tmp_path / run / "sae" / "sae.safetensors").read_bytes() for run in ("whole", "half"))
    assert whole_bytes == half_bytes
    loaded, _, _ = load_sae(tmp_path / "whole")
    assert isinstance(loaded.budget, Threshold) and loaded.budget.threshold > 0
    rows = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"prefix", "error", "l0", "dead"} <= rows[-1].keys()
    occupied = np.asarray(loaded.occupied)
    assert occupied[24:].any() and np.allclose(np.linalg.norm(loaded.rows[occupied], axis=1), 1, atol=1e-5)


def _stop(request, step):
    request.signal = signal.SIGTERM if step == 8 else None
    return step == 8


@pytest.mark.parametrize(
    "options, words",
    [
        ({"budget": MeanL0(31.0)}, "up to 62 rows enter for a token, but levels .6, 3, 2. have 60"),
        ({"filled": 4}, "filled is 4, but there are 3 levels"),
        ({"candidates": Screened(7, 6)}, "rounds is 7, but a token has 6 picks"),
        ({"candidates": Screened(2, 6, "every round"), "most_children": 1}, "most_children is 1, but children are"),
        ({"candidates": Screened(1, 5)}, "picks up to 6 rows, but has 5 candidates"),
        ({"levels": ()}, "levels is .*at least one entry"),
        ({"levels": (3, 0)}, "levels.1 is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        sae(**options)


def test_exactly_k_rows_are_in():
    found = forward(sae(ExactL0(3, extra=3), levels=(40,)), tokens())
    assert (found.codes.l0() == 3).mean() > 0.9 and (found.codes.l0() <= 3).all()
    assert found.codes.indices.shape == (24, 6)
