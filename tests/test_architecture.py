"""A new architecture is one Python file and one YAML; every built-in one trains, resumes, settles and loads."""

import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from parts.pursuit import MatchingPursuit
from parts.transcoder import Transcoder

from jhsae import config, evals
from jhsae.config import Supplied
from jhsae.constraint import ProjectAndRenormalize
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.losses import AbstractTerm, AuxK, Objective, SquaredError
from jhsae.optimizer import adam
from jhsae.resampling import NoResampling, Resample
from jhsae.sae import AbstractSAE
from jhsae.schedule import Constant
from jhsae.sparsify import ExactL0, JumpReLU, ReLU, Threshold, TopK
from jhsae.training.checkpoint import Checkpoints, load_sae, save_sae
from jhsae.training.config import Train
from jhsae.training.fit import fit
from jhsae.training.run import train
from jhsae.training.step import StageModules, TrainState, make_step
from jhsae.usage import Context

FEATURES, BATCH, STEPS = 24, 32, 8
WITH_AUX = Objective({"reconstruction": SquaredError(), "aux": AuxK(k=4)}, {"aux": 0.03})

FILE = '''
"""A tied SAE whose features have a gain of their own, its sparsifier and its penalty."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.leaf import NonNegative, Unit
from jhsae.errors import UserError
from jhsae.losses import AbstractTerm
from jhsae.sae import AbstractSAE, Forward, TopLevel
from jhsae.schedule import AbstractSchedule
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context, FeatureStats


class NoisyMargin(AbstractSparsifier):
    """What exceeds a margin, which is learned; noise in training, none at inference."""

    margin: Annotated[Float[Array, "features"], NonNegative()]
    noise: AbstractSchedule
    settled_now: bool = eqx.field(static=True)

    def __init__(self, initial: float, noise: AbstractSchedule, settled_now: bool = False):
        self.margin, self.noise, self.settled_now = jnp.full(1, initial, jnp.float32), noise, settled_now

    def sized(self, size: int) -> "NoisyMargin":
        return eqx.tree_at(lambda s: s.margin, self, jnp.broadcast_to(self.margin, (size,)))

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jax.nn.relu(pre - self.margin)

    def value(self, pre: Float[Array, "*batch n"], context: Context) -> Float[Array, "*batch n"]:
        if context.key is not None and not self.settled_now:
            pre = pre + self.noise(context.step) * jax.random.normal(context.key, pre.shape)
        return self.activate(pre)

    def most_active(self, size: int) -> int:
        return size

    def track(self, threshold: Float[Array, ""], codes: Codes) -> Float[Array, ""]:
        return jnp.maximum(threshold, jnp.max(codes.values))

    def for_inference(self, threshold: Float[Array, ""]) -> AbstractSparsifier:
        made = NoisyMargin(0.0, self.noise, settled_now=True)
        return eqx.tree_at(lambda s: s.margin, made, self.margin)


class GainSAE(AbstractSAE):
    """``x_hat = codes (gain * W) + b_dec``, ``codes = sparsifier(W (x - b_dec))``."""

    W: Annotated[Float[Array, "features embed"], Unit("embed")]
    gain: Float[Array, "features"]
    b_dec: Float[Array, "embed"]
    sparsifier: AbstractSparsifier

    def __init__(self, embed: int, features: int, sparsifier: AbstractSparsifier, *, key: Key[Array, ""]):
        self.W = jax.random.normal(key, (features, embed))
        self.gain, self.b_dec = jnp.ones(features), jnp.zeros(embed)
        self.sparsifier = sparsifier.sized(features)

    @property
    def top_level(self) -> TopLevel:
        return TopLevel(None, self.W, (self.gain,))

    @property
    def sparsifiers(self) -> tuple[AbstractSparsifier, ...]:
        return (self.sparsifier,)

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        pre = (x - self.b_dec) @ self.W.T
        codes = self.sparsifier(pre, context)
        return Forward(x, self.decode(codes), codes, ops.Encoder.from_preactivations(pre), context)

    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        return codes.dense() @ self.dictionary() + self.b_dec

    def dictionary(self) -> Float[Array, "features embed"]:
        return self.W * self.gain[:, None]


class GainNearOne(AbstractTerm):
    """``mean (gain - 1)^2``."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        return jnp.mean((sae.gain - 1) ** 2) + 0.0 * jnp.sum(forward.context.step)
'''


def test_adding_an_architecture_touches_one_file_and_one_yaml(tmp_path, monkeypatch, caplog):
    """A sparsifier with a parameter, an SAE and a term, none of which anything else knows."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_architecture.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    runs.store(tmp_path / "store")
    noise = {"_target_": "jhsae.schedule.Linear", "start": 0.1, "end": 0.0, "steps": 30}
    margin = {"_target_": "my_architecture.NoisyMargin", "initial": 0.1, "noise": noise}
    sae = {"_target_": "my_architecture.GainSAE", "embed": runs.EMBED, "features": FEATURES, "sparsifier": margin}
    objective = {
        "reconstruction": {"_target_": "jhsae.losses.SquaredError"},
        "gain": {"_target_": "my_architecture.GainNearOne"},
    }
    stages = [{"name": "all", "steps": 40, "learning_rate": 1e-2}]
    path = runs.train_config(
        tmp_path, tmp_path / "store", tmp_path / "run", sae=sae, objective=objective, weights={}, stages=stages
    )
    train(config.load(Train, path))
    with pytest.raises(UserError, match=r"my_architecture.GainSAE, but .* write trust=my_architecture"):
        load_sae(tmp_path / "run")
    del sys.modules["my_architecture"]
    loaded, normalizer, about = load_sae(tmp_path / "run", trust="my_architecture")
    assert "importing my_architecture" in caplog.text
    mine = sys.modules.pop("my_architecture")
    assert isinstance(loaded, mine.GainSAE) and about["sae"]["_target_"] == "my_architecture.GainSAE"
    assert loaded.sparsifier.settled_now and loaded.sparsifier.margin.shape == (FEATURES,)
    assert np.ptp(loaded.sparsifier.margin) > 0 and (np.asarray(loaded.sparsifier.margin) >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(loaded.W, axis=1), 1.0, rtol=1e-5)
    x = runs.activations(256)
    metrics, frequency = evals.fidelity(loaded, normalizer, [x], x.mean(0, dtype=np.float64))
    first, *_, last = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"gain", "reconstruction", "dead", "l0"} <= first.keys()
    assert metrics["ev_r2"] == pytest.approx(last["explained_variance"], abs=0.15) and metrics["ev_r2"] > 0.3
    assert frequency.shape == (FEATURES,) and 0 < metrics["l0"] < FEATURES


PARTS = Path(__file__).parent / "parts"
NEW = {  # the part, what it reads besides the SAE that is in its YAML, and the explained variance that it reaches
    "huber": 0.5,
    "absolute": 0.5,
    "pursuit": 0.5,
    "clipped": 0.5,
}


def run_of(name, tmp_path):
    """A run folder that ``jhsae train`` made of the YAML of a part."""
    runs.store(tmp_path / "store")
    overrides = [f"out={tmp_path / 'run'}", f"data.store={tmp_path / 'store'}"]
    train(config.load(Train, PARTS / f"{name}.yaml", overrides))
    return tmp_path / "run"


@pytest.mark.parametrize("name", NEW)
def test_a_new_part_is_one_file_of_30_lines_and_one_yaml(name, tmp_path):
    """A term, a sparsifier, an SAE and a normaliser: trained, saved, loaded and evaluated."""
    assert len((PARTS / f"{name}.py").read_text().splitlines()) <= 30
    assert len((PARTS / f"{name}.yaml").read_text().splitlines()) <= 10
    folder = run_of(name, tmp_path)
    loaded, normalizer, _ = load_sae(folder, trust="parts")
    x = runs.activations(256)
    metrics, _ = evals.fidelity(loaded, normalizer, [x], x.mean(0, dtype=np.float64))
    first, *_, last = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics["ev_r2"] > max(NEW[name], first["explained_variance"]), (metrics, first)
    assert 0 < metrics["l0"] <= 3 and np.isfinite(last["loss"])


def test_the_encoder_may_be_a_pursuit():
    """It selects step by step against the dictionary, and trains by `fit` with terms that know nothing of it."""
    sae = MatchingPursuit(runs.EMBED, FEATURES, 3, key=jax.random.key(0))
    rows = runs.activations(256)
    trained, log = fit(sae, rows, steps=60, learning_rate=1e-2, batch=64, objective=WITH_AUX, dead_window=3)
    codes, left = trained.encode(rows[:9]).dense(), np.asarray(rows[:9])
    for token in range(9):  # one token after the other, one row after the other
        want = np.zeros(FEATURES)
        for _ in range(3):
            products = np.asarray(trained.W) @ left[token]
            best = np.argmax(np.abs(products))
            want[best] += products[best]
            left[token] -= products[best] * np.asarray(trained.W)[best]
        np.testing.assert_allclose(codes[token], want, rtol=1e-3, atol=1e-4)
    assert log[-1]["explained_variance"] > max(0.5, log[0]["explained_variance"])
    assert (trained.features, trained.embed) == (FEATURES, runs.EMBED)


def test_the_target_may_be_another_than_the_input():
    """Every term that reconstructs, and the explained variance, compare with it."""
    assert len((PARTS / "transcoder.py").read_text().splitlines()) <= 30
    sae = Transcoder(runs.EMBED, FEATURES, TopK(3), key=jax.random.key(0))
    rows = runs.activations(256)
    trained, log = fit(sae, rows, steps=60, learning_rate=1e-2, batch=64, objective=WITH_AUX, dead_window=3)
    target = np.cumsum(rows, axis=-1)
    error = ((target - np.asarray(trained(rows))) ** 2).sum()
    explained = 1 - error / ((target - target.mean(0)) ** 2).sum()
    assert explained > max(0.5, log[0]["explained_variance"])
    assert explained == pytest.approx(log[-1]["explained_variance"], abs=0.1)


def part(name, **arguments):
    return {"_target_": f"jhsae.{name}", **arguments}


def flat(sparsifier, **options):
    return part("sae.FlatSAE", embed=runs.EMBED, features=FEATURES, sparsifier=sparsifier, **options)


BATCH_TOPK, UNIT = part("sparsify.BatchTopK", k=3, threshold_rate=0.3), part("sae.DecoderNormUnit")
TREE = part(
    "sae.HierarchicalSAE", embed=runs.EMBED, experts=8, sub=3, atoms=3, biases=["encoder", "decoder"],
    route=part("sparsify.BatchTopK", k=2.5), pick=part("sparsify.TopK", k=1),
)  # fmt: skip
PURSUIT = part("sae.PursuitSAE", embed=runs.EMBED, levels=[8, 2], budget=part("sparsify.MeanL0", k=3), most_children=1)
LINEAR = part("schedule.Linear", start=1.0, end=0.5, steps=STEPS)
MATRYOSHKA = {"inner": part("losses.Prefixes", widths=[4, 9]), "aux": part("losses.MatryoshkaAuxK", widths=[4, 9])}
JUMP = {
    "count": part("losses.L0"),
    "tanh": part("losses.TanhL0", scale=4),
    "target": part("losses.QuadraticL0", target=3),
    "pre": part("losses.DeadPreActivation"),
}
ARCHITECTURES = {  # the SAE's slot, its terms beside the squared error, and what its sparsifiers settle as
    "standard": (
        flat(part("sparsify.ReLU")),
        {"l1": part("losses.Contributions"), "lp": part("losses.AnnealedLp", p=LINEAR)},
        (ReLU,),
    ),
    "topk": (
        flat(part("sparsify.AnnealedTopK", k=3, start=9, steps=STEPS)),
        {"aux": part("losses.AuxKNormalized")},
        (TopK,),
    ),
    "batchtopk, matryoshka": (flat(BATCH_TOPK, code_unit=UNIT), {"all": part("losses.AuxK")} | MATRYOSHKA, (JumpReLU,)),
    "jump": (flat(part("sparsify.JumpReLU", initial=0.1, bandwidth=0.5)), JUMP, (JumpReLU,)),
    "gated": (
        part("sae.GatedSAE", embed=runs.EMBED, features=FEATURES),
        {"l1": part("losses.GateL1"), "gate": part("losses.GateReconstruction")},
        (),
    ),
    "matching pursuit": (part("sae.MatchingPursuitSAE", embed=runs.EMBED, features=FEATURES, max_iterations=4), {}, ()),
    "hierarchical": (TREE, {"ghosts": part("losses.GhostAtoms")}, (JumpReLU, TopK)),
    "pursuit": (PURSUIT, {"aux": part("losses.AuxK", k=4), "prefix": part("losses.Prefix")}, (Threshold,)),
    "pursuit, screened": (
        PURSUIT | {"candidates": part("sae.Screened", rounds=2, candidates=5), "budget": part("sparsify.ExactL0", k=3)},
        {"prefix": part("losses.Prefix")},
        (ExactL0,),
    ),
}


def bits(tree):
    return [np.asarray(a).tobytes() for a in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))]


@pytest.mark.few(5)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains_resumes_settles_and_loads(name, tmp_path):
    slot, terms, settle_as = ARCHITECTURES[name]
    slot = config.checked(slot, tmp_path / "here.yaml", Supplied("key", kind=AbstractSAE))
    terms = {k: config.build(t, AbstractTerm) for k, t in terms.items()}
    normalize = part("data.CenterScale")
    rows = runs.activations(STEPS * BATCH)
    normalizer = config.build(normalize, AbstractNormalizer).fit(runs.store(tmp_path / "store", len(rows)))
    objective = Objective({"reconstruction": SquaredError()} | terms, dict.fromkeys(terms, 0.1))
    resampling = Resample(3, 6) if name == "standard" else NoResampling()
    parts = StageModules(objective, Constant(1e-2), ProjectAndRenormalize(), normalizer, resampling)
    step = make_step(adam(), dead_window=2, feature_sampling_window=2)

    def fresh():
        return TrainState.init(config.build(slot, key=jax.random.key(0)), adam(), jax.random.key(1))

    def trained(state, end):
        while int(state.step) < end:
            at = int(state.step) * BATCH
            state, metrics = step((parts, jnp.asarray(rows[at : at + BATCH])), state)
            assert all(np.isfinite(float(v)) for k, v in metrics.items() if int(state.step) > 1), metrics
        return state

    whole = trained(fresh(), STEPS)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(trained(fresh(), 5), {})
        half, _ = checkpoints.restore(fresh(), 5)
    assert bits(trained(half, STEPS)) == bits(whole)
    assert bits(whole.sae) != bits(fresh().sae)

    for_inference = whole.sae.for_inference(whole.usage)
    save_sae(tmp_path / "sae", for_inference, slot, normalize, normalizer, {})
    loaded, read, _ = load_sae(tmp_path / "sae")
    assert bits(loaded) == bits(for_inference) and jax.tree.structure(loaded) == jax.tree.structure(for_inference)
    assert tuple(map(type, loaded.sparsifiers)) == settle_as
    x, _ = read(jnp.asarray(rows[:BATCH]))
    encode = eqx.filter_jit(lambda x: loaded.forward(x, Context()).codes.dense())
    codes = encode(x)
    assert np.isfinite(codes).all() and (codes != 0).any()
    np.testing.assert_array_equal(encode(x.at[1:].multiply(5.0))[0], codes[0])


@pytest.mark.slow
def test_a_hierarchical_sae_of_batch_topk_trains_by_the_verb_on_several_devices(tmp_path):
    runs.store(tmp_path / "store")
    path = runs.train_config(
        tmp_path,
        tmp_path / "store",
        tmp_path / "run",
        sae=TREE,
        stages=[{"name": "all", "steps": 14, "learning_rate": 1e-2}],
        resampling=part("resampling.Resample", every=6, until=12),
        dead_tokens=150,
        feature_sampling_window=4,
        mesh={"data": 4, "expert": 2},
    )
    loaded_config = config.load(Train, path)
    train(loaded_config)
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["dead"] for row in rows[:2]] == [0.0, 0.0], "150 tokens are 3 steps of 64"
    assert [("mean_log10_frequency" in row) for row in rows] == [step >= 4 for step in range(1, 15)]
    loaded, normalizer, _ = load_sae(tmp_path / "run")
    assert isinstance(loaded.route, JumpReLU) and np.ptp(loaded.route.threshold) == 0 < loaded.route.threshold[0]
    x = runs.activations(256)
    metrics, _ = evals.fidelity(loaded, normalizer, [x], x.mean(0, dtype=np.float64))
    assert np.isfinite(metrics["mse"]) and 0 < metrics["l0_parents"] < 8
