"""The training step: one jitted function from (modules, batch) and a state to the next state and its metrics.

`TrainState` and the loader's position are all that a resumed run needs. Nothing inside synchronises with the host, and
the state is donated. Constraints, losses and schedules are modules that the step is given.
"""

from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from jhsae import ops
from jhsae.constraint import AbstractConstraint, Unconstrained
from jhsae.data.normalize import AbstractNormalizer
from jhsae.losses import Objective
from jhsae.optimizer import chain
from jhsae.ranges import Count, Positive, Ranged, ranged
from jhsae.resampling import AbstractResampling, NoResampling
from jhsae.sae import AbstractSAE, Context, FeatureStats, Forward
from jhsae.schedule import AbstractSchedule
from jhsae.training.sharding import shard_state

Metrics = dict[str, Float[Array, ""]]


class TrainState(eqx.Module):
    """Everything that changes during training; donated to each step and saved in checkpoints.

    Args:
        sae: The SAE with its parameters.
        opt_state: State of the optimizer chain over the inexact arrays of `sae`.
        usage: Firing statistics of each feature, in steps and fractions of tokens.
        step: Number of finished updates.
        key: Never changes; each step folds `step` into it.
    """

    sae: AbstractSAE
    opt_state: optax.OptState
    usage: FeatureStats
    step: Int[Array, ""]
    key: Key[Array, ""]

    @classmethod
    def init(cls, sae: AbstractSAE, optimizer: optax.GradientTransformation, key: Key[Array, ""]) -> "TrainState":
        """The state before the first update.

        Args:
            sae: The initialised SAE; its arrays are copied, because the step donates them.
            optimizer: The one that is given to `make_step`.
            key: Seeds what is drawn in the steps (routing noise, resampling).
        """
        sae, key = jax.tree.map(lambda a: jnp.array(a, copy=True) if eqx.is_array(a) else a, (sae, key))
        opt_state = chain(optimizer, 0.0, Unconstrained()).init(eqx.filter(sae, eqx.is_inexact_array))
        usage = FeatureStats.init(sae.features, len(sae.sparsifiers))
        return cls(sae, opt_state, usage, jnp.zeros((), jnp.int32), key)


class StageModules(Ranged, eqx.Module):
    """What a step computes with: arguments of its program, so that one program serves other values of their arrays.

    Args:
        objective: The weighted loss terms.
        learning_rate: A schedule of the step of the whole run.
        constraint: How decoder rows keep unit norm.
        normalizer: From stored activations to inputs of the SAE.
        resampling: How dead features are resampled.
    """

    objective: Objective
    learning_rate: Annotated[AbstractSchedule, Ge(0)]
    constraint: AbstractConstraint
    normalizer: AbstractNormalizer
    resampling: AbstractResampling = NoResampling()


@ranged
def make_step(
    optimizer: optax.GradientTransformation,
    frozen: PyTree[bool] | None = None,
    clip: Positive | None = 1.0,
    dead_window: Count = 1000,
    feature_sampling_window: Count = 2000,
    mesh: Mesh | None = None,
    precision: ops.Precision = "float32",
) -> Callable[[tuple[StageModules, Array], TrainState], tuple[TrainState, Metrics]]:
    """The jitted step of one stage.

    The rule for what goes where: whatever may hold arrays or schedules is a field of `StageModules`, an argument of the
    program; what decides its structure (the optimizer, which parameters are frozen, window lengths, the mesh, dtypes)
    is an argument here, a constant of the program.

    Args:
        optimizer: The optax transformation before learning rate, constraint and clipping are chained to it.
        frozen: A tree like the SAE, True at parameters that do not change; None where all do.
        clip: Bound on the global gradient norm; None for none.
        dead_window: Steps without firing after which a feature is dead.
        feature_sampling_window: Steps over which firing frequencies are measured.
        mesh: Devices over which the operations are split; the next state keeps its sharding.
        precision: Of the hot matrix products; all else is float32.

    Returns:
        ``step((modules, batch), state) -> (state, metrics)`` with a batch [batch, embed] of any float dtype (of
        an SAE of another target with that beside it, [batch, embed + output]) and scalar
        metrics that stay on the device. `state` is donated.
    """
    # features with frozen parameters cannot be resampled
    part_frozen = frozen is not None and any(jax.tree.leaves(frozen.top_level))

    @eqx.filter_jit(donate="all-except-first")
    def step(inputs: tuple[StageModules, Array], state: TrainState) -> tuple[TrainState, Metrics]:
        modules, batch = inputs
        with jax.named_scope("normalize"):
            x, y = modules.normalizer.inside(batch.astype(jnp.float32))
        dead = state.usage.dead(dead_window)
        context = Context(jax.random.fold_in(state.key, state.step), state.step, state.usage, dead)
        params, static = eqx.partition(state.sae, eqx.is_inexact_array)

        def loss(params: PyTree) -> tuple[Array, tuple[Metrics, Forward]]:
            sae = eqx.combine(params, static)
            forward = sae.forward(x, context).compared_to(y)
            with jax.named_scope("objective"):
                total, terms = modules.objective(sae, forward, state.step)
            return total, (terms, forward)

        with ops.compute_in(precision), ops.sharded_over(mesh):
            (total, (terms, forward)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        rate = modules.learning_rate(state.step)
        update = chain(optimizer, rate, modules.constraint, frozen, clip)
        with jax.named_scope("update"):
            updates, opt_state = update.update(grads, state.opt_state, params)
            sae = eqx.apply_updates(state.sae, updates)
        resampling = NoResampling() if part_frozen else modules.resampling
        with jax.named_scope("resample"):
            resample_key = jax.random.fold_in(state.key, -1 - state.step)
            sae, opt_state, resampled = resampling(sae, opt_state, update, forward, state.step, resample_key)
        with jax.named_scope("feature_stats"):
            usage = state.sae.observe(state.usage, forward.codes, feature_sampling_window).restarted(resampled)
        with jax.named_scope("metrics"):
            metrics = {"loss": total, **terms, **_fidelity(forward)}
            metrics |= {"learning_rate": jnp.asarray(rate, jnp.float32), "grad_norm": optax.tree.norm(grads)}
            metrics |= _sampled(usage, dead_window)
        after = TrainState(sae, opt_state, usage, state.step + 1, state.key)
        return after if mesh is None or mesh.size == 1 else shard_state(after, mesh), metrics

    return step


def _sampled(usage: FeatureStats, dead_window: int) -> Metrics:
    """Fraction of dead features, and firing frequencies over the last sampling window (NaN before the first ends)."""
    frequency = usage.frequency
    unknown = jnp.isnan(frequency[0])
    rates = {
        "mean_log10_frequency": jnp.mean(jnp.log10(frequency + 1e-10)),
        "below_1e-5": jnp.where(unknown, jnp.nan, jnp.mean(frequency < 1e-5)),
        "below_1e-6": jnp.where(unknown, jnp.nan, jnp.mean(frequency < 1e-6)),
    }
    return {"dead": jnp.mean(usage.dead(dead_window)), **rates}


def _fidelity(forward: Forward) -> Metrics:
    """Explained variance (centred R^2 of this batch) and L0, in the units of the SAE's own input.

    NaN, which is not logged, where all rows of the batch are equal.
    """
    target = forward.target
    residual = jnp.sum((target - forward.x_hat) ** 2)
    total = jnp.sum((target - jnp.mean(target, axis=0)) ** 2)
    explained = jnp.where(total > 0, 1 - residual / jnp.where(total > 0, total, 1.0), jnp.nan)
    return {"explained_variance": explained, "l0": jnp.mean(forward.codes.l0())}
