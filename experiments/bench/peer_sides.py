"""The sides of peers.py: SAELens, dictionary_learning and jhsae, each with its own training step.

jhsae trains what the peer trains, from the peer's parameters: free decoder norms and codes in units of them as
SAELens, or unit decoder rows and the normalised AuxK as dictionary_learning. The same features are dead on every side,
so that AuxK has the same work in each: `prepare` sets their counters before every step, and encoder rows near 0 keep
them from firing, because dictionary_learning counts what fires in a step before it asks who is dead.
"""

import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.training.config import Train
from jhsae.training.recipe import Recipe, build_sae
from jhsae.training.step import TrainState

SILENT = 1e-2  # what the encoder rows of dead features are multiplied by
ALPHA = 1 / 32  # dictionary_learning's default weight of AuxK; SAELens's is 1
LIKE_DICTIONARY_LEARNING = (
    "init=[]",
    "sae.code_unit={_target_: jhsae.sae.PlainUnit}",
    "constraint={_target_: jhsae.constraint.ProjectAndRenormalize}",
    "objective.auxk={_target_: jhsae.losses.AuxKNormalized}",
)


@dataclass(frozen=True)
class Setting:
    """What all sides share; `dead` holds the features that are dead before every step, none where AuxK is off."""

    embed: int
    width: int
    batch: int
    k: int
    rate: float
    dead: np.ndarray

    @property
    def auxk(self) -> bool:
        return len(self.dead) > 0


@dataclass(frozen=True)
class Outcome:
    """The loss of one step, its AuxK term in the side's own unit (None where there is none), and the dead it saw."""

    loss: float
    auxk: float | None
    dead: int


class Side(Protocol):
    """One training loop: `prepare` and `result` are not timed, `step` returns when its work is done."""

    def prepare(self) -> None: ...

    def step(self, number: int) -> None: ...

    def result(self) -> Outcome: ...

    def parameters(self) -> dict[str, np.ndarray]:
        """In our names and layouts: rows are features."""
        ...


class SAELens:
    """TopKTrainingSAE under SAETrainer.step: loss, backward, clipping at 1, Adam, its counters; defaults elsewhere."""

    def __init__(self, setting: Setting, batches: list[np.ndarray], start: dict[str, np.ndarray]):
        import torch
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(0)
        coefficient = 1.0 if setting.auxk else 0.0
        sizes = {"d_in": setting.embed, "d_sae": setting.width, "k": setting.k}
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, aux_loss_coefficient=coefficient))
        for name, value in start.items():
            getattr(sae, name).data.copy_(torch.from_numpy(value))
        sae.W_enc.data[:, setting.dead] *= SILENT
        self._batches = [torch.from_numpy(batch) for batch in batches]
        config = SAETrainerConfig(
            total_training_samples=10**6 * setting.batch,
            train_batch_size_samples=setting.batch,
            lr=setting.rate,
            lr_end=setting.rate,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self._trainer = SAETrainer(config, sae, iter(self._batches))
        self._dead, self._auxk = torch.from_numpy(setting.dead), setting.auxk

    def prepare(self) -> None:
        self._trainer.n_forward_passes_since_fired.zero_()
        self._trainer.n_forward_passes_since_fired[self._dead] = self._trainer.cfg.dead_feature_window + 1

        self._seen = int(self._trainer.dead_neurons.sum())

    def step(self, number: int) -> None:
        self._output = self._trainer.step(self._batches[number % len(self._batches)])
        self._trainer.n_training_steps += 1

    def result(self) -> Outcome:
        auxk = self._output.losses["auxiliary_reconstruction_loss"].item()
        return Outcome(self._output.loss.item(), auxk if self._auxk or auxk != 0 else None, self._seen)

    def parameters(self) -> dict[str, np.ndarray]:
        sae = self._trainer.sae
        arrays = {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
        return {name: value.detach().numpy().copy() for name, value in arrays.items()}


class DictionaryLearning:
    """AutoEncoderTopK under TopKTrainer.update, without the first step, which sets the bias to a geometric median.

    The running threshold for inference, kept from step 1,000 on, is left out in its favour.
    """

    def __init__(self, setting: Setting, batches: list[np.ndarray], start: dict[str, np.ndarray]):
        import torch

        self._trainer = dictionary_learning().TopKTrainer(
            steps=10**6,
            activation_dim=setting.embed,
            dict_size=setting.width,
            k=setting.k,
            layer=0,
            lm_name="none",
            lr=setting.rate,
            auxk_alpha=ALPHA if setting.auxk else 0.0,
            warmup_steps=0,
            threshold_start_step=10**6,
            seed=0,
            device="cpu",
        )
        ae = self._trainer.ae
        ae.encoder.bias.data.copy_(torch.from_numpy(start["b_enc"]))
        ae.b_dec.data.copy_(torch.from_numpy(start["b_dec"]))
        ae.encoder.weight.data[setting.dead] *= SILENT
        self._batches = [torch.from_numpy(batch) for batch in batches]
        self._dead = torch.from_numpy(setting.dead)

    def prepare(self) -> None:
        self._trainer.num_tokens_since_fired.zero_()
        self._trainer.num_tokens_since_fired[self._dead] = self._trainer.dead_feature_threshold

    def step(self, number: int) -> None:
        self._loss = self._trainer.update(number + 1, self._batches[number % len(self._batches)])

    def result(self) -> Outcome:
        if self._trainer.dead_features == -1:  # AuxK was never asked for
            return Outcome(self._loss, None, 0)
        return Outcome(self._loss, self._trainer.pre_norm_auxk_loss.item(), self._trainer.dead_features)

    def parameters(self) -> dict[str, np.ndarray]:
        ae = self._trainer.ae
        arrays = {"W_enc": ae.encoder.weight, "W_dec": ae.decoder.weight.T, "b_enc": ae.encoder.bias, "b_dec": ae.b_dec}
        return {name: value.detach().numpy().copy() for name, value in arrays.items()}


class Ours:
    """configs/flat/topk.yaml at this shape under the step of `jhsae train`, from `start`."""

    def __init__(
        self,
        setting: Setting,
        batches: list[np.ndarray],
        start: dict[str, np.ndarray],
        overrides: tuple[str, ...],
        weight: float,
    ):
        config = cfg.load(
            Train,
            cfg.find("flat/topk.yaml"),
            [
                f"data.batch={setting.batch}",
                "data.normalize={_target_: jhsae.data.Identity}",
                f"sae.embed={setting.embed}",
                f"sae.features={setting.width}",
                f"sae.sparsifier.k={setting.k}",
                f"stages.0.learning_rate={setting.rate}",
                f"weights.auxk={weight if setting.auxk else 0.0}",
                *overrides,
            ],
        )
        mesh, key = make_mesh(MeshShape(), devices=1), jax.random.key(0)
        sae = build_sae(config, key)
        sae = eqx.tree_at(
            lambda s: [getattr(s, name) for name in start], sae, [jnp.asarray(value) for value in start.values()]
        )
        recipe = Recipe.of(config, cfg.build(config.data.normalize))
        self._stage = recipe.stage(config.stages[0], sae, mesh)
        self._state = TrainState.init(sae, recipe.optimizer, key)
        self._batches = [jnp.asarray(batch) for batch in batches]
        since = np.zeros(setting.width, np.int32)
        since[setting.dead] = config.dead_window
        self._since, self._window = since, config.dead_window

    def prepare(self) -> None:
        self._state = eqx.tree_at(lambda s: s.usage.since_fired, self._state, jnp.array(self._since))
        self._seen = int(self._state.usage.dead(self._window).sum())

    def step(self, number: int) -> None:
        batch = self._batches[number % len(self._batches)]
        self._state, self._metrics = self._stage.step((self._stage.modules, batch), self._state)
        jax.block_until_ready((self._state, self._metrics))

    def result(self) -> Outcome:
        auxk = self._metrics.get("auxk")
        return Outcome(float(self._metrics["loss"]), None if auxk is None else float(auxk), self._seen)

    def parameters(self) -> dict[str, np.ndarray]:
        sae: Any = self._state.sae
        return {name: np.array(getattr(sae, name)) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def dictionary_learning() -> Any:
    """Its module of TopK. The package's own ``__init__`` is passed over: it wants nnsight, which no trainer uses."""
    name = "dictionary_learning"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            raise UserError(
                "the package dictionary_learning is not installed; write pip install --no-deps "
                "dictionary-learning==0.1.0 (its pins, nnsight below 0.4 among them, are not needed here)"
            )
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = package
    return importlib.import_module(f"{name}.trainers.top_k")
