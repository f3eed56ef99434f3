"""`MixtureOfExperts_v2` as it was published (arXiv 2506.01197), cost included: the reference of ``jhsae bench step``.

Reimplemented from its equations in its own style and array layouts (decoders are columns):
``z = 1[E x >= t] E x``, the k largest by k passes of argmax over the whole row, ``c = leaky(Ec_i Wd_i x)`` for each of
them, its best atom kept by a mask, ``x_hat = sum_i v_i D_i + sum_i Wu_i Dc_i c_i``; batch x experts masks, an
experts x experts penalty, per-token gathers under `vmap`, a tracker repeated for every token of the batch.
Left out, in its favour: the norms of the atom decoder that it repeats for every token only to log their extremes.
`tests/bench/test_bench_original.py` compares it with the golden values of the original program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jhsae.bench.measurement import Memory

L1, ORTHOGONALITY, PARENTS_ONLY = 1e-3, 0.1, 0.1  # weights of its loss terms
CLIP, RATE, SLOPE, EPS = 0.75, 5e-4, 0.01, 1e-6


class Original(NamedTuple):
    """Its parameters, by its own names and in its own layouts."""

    router_encoder: Float[Array, "experts embed"]
    router_decoder: Float[Array, "embed experts"]
    W_down: Float[Array, "experts sub embed"]
    W_up: Float[Array, "experts embed sub"]
    expert_encoder: Float[Array, "experts atoms sub"]
    expert_decoder: Float[Array, "experts sub atoms"]


class Selected(NamedTuple):
    """The experts of every token, and the codes of all their atoms: the input of the tracker."""

    indices: Int[Array, "batch k"]
    atoms: Float[Array, "batch k atoms"]


class Updated(NamedTuple):
    """The output of its jitted training step."""

    params: Original
    opt_state: optax.OptState
    loss: Float[Array, ""]
    selected: Selected


class OriginalState(NamedTuple):
    """The carry of its training loop."""

    params: Original
    opt_state: optax.OptState
    tracker: Float[Array, "experts atoms"]


def loss(params: Original, x: Float[Array, "batch embed"], k: int) -> tuple[Float[Array, ""], Selected]:
    """The whole objective, and the input of the tracker."""

    def encode(token: Array) -> tuple[Array, Array, Array, Array]:
        z = params.router_encoder @ token
        z = jnp.where(z >= token.size**-0.5, z, 0.0)
        values, indices = _scan_topk(z[None], k)
        hidden = params.W_down[indices] @ token
        c = jax.vmap(jnp.matmul)(params.expert_encoder[indices], hidden)
        return z, jnp.where(c >= token.size**-0.5, c, SLOPE * c), indices, values

    def decode(atoms: Array, indices: Array, values: Array) -> tuple[Array, Array]:
        top = params.router_decoder[:, indices] @ values
        inside = jax.vmap(jnp.matmul)(params.expert_decoder[indices], atoms)
        return top + jnp.sum(jax.vmap(jnp.matmul)(params.W_up[indices], inside), axis=0), top

    z, c, indices, values = jax.vmap(encode)(x)
    x_hat, top = jax.vmap(decode)(_winners(z, c, indices, values), indices, values)
    reconstruction = jnp.mean(jnp.sum((x - x_hat) ** 2, axis=-1))
    parents_only = jnp.mean(jnp.sum((x - top) ** 2, axis=-1))
    l1 = (jnp.sum(jnp.abs(z)) + jnp.sum(jnp.abs(c))) / x.shape[0]
    penalty = _cross_penalty(params.router_encoder.T, params.router_decoder.T)
    total = reconstruction + L1 * l1 + ORTHOGONALITY * penalty + PARENTS_ONLY * parents_only
    return total, Selected(indices, c)


def start(params: Original) -> OriginalState:
    """The state before the first update."""
    experts, atoms, _ = params.expert_encoder.shape
    return OriginalState(params, _optimizer().init(params), jnp.zeros((experts, atoms)))


def update(params: Original, opt_state: optax.OptState, x: Float[Array, "batch embed"], k: int) -> Updated:
    """One training step: gradients, projected, clipped, Adam, renormalised."""
    (value, selected), grads = jax.value_and_grad(loss, has_aux=True)(params, x, k)
    updates, opt_state = _optimizer().update(project(grads, params), opt_state)
    return Updated(_renormalize(optax.apply_updates(params, updates)), opt_state, value, selected)


def track(tracker: Float[Array, "experts atoms"], selected: Selected) -> Float[Array, "experts atoms"]:
    """Counts the positive codes of every atom, through one tracker per token."""
    batch = selected.indices.shape[0]
    each = jnp.repeat(jnp.zeros_like(tracker)[None], batch, axis=0)
    each = each.at[jnp.arange(batch)[:, None], selected.indices].set((selected.atoms > 0).astype(tracker.dtype))
    return tracker + jnp.sum(each, axis=0)


def _optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))


def _scan_topk(z: Float[Array, "one experts"], k: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """The k largest of one row by k passes of argmax, each masking what it found; differentiable through them."""

    def once(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = jnp.argmax(left, axis=1)
        value = jax.vmap(lambda row, i: row[i])(left, best)
        return jax.vmap(lambda row, i: row.at[i].set(-jnp.inf))(left, best), (value, best)

    _, (values, indices) = jax.lax.scan(once, z, None, length=k)
    return values.T.reshape(-1), indices.T.reshape(-1)


def _winners(z: Array, c: Array, indices: Array, values: Array) -> Float[Array, "batch k atoms"]:
    """The codes with all but the best atom of every active expert masked away."""
    tokens = jnp.arange(z.shape[0])[:, None]
    active = jnp.zeros_like(z).at[tokens, indices].set(jnp.where(values > 0, 1.0, 0.0))
    slots = jnp.arange(c.shape[1])[None]
    best = jnp.zeros_like(c).at[tokens, slots, jnp.argmax(c, axis=-1)].set(1.0)
    return best * c * jnp.take_along_axis(active, indices, axis=1)[..., None]


def _cross_penalty(encoder: Float[Array, "embed experts"], decoder: Float[Array, "experts embed"]) -> Array:
    """``jnp.diag`` of a matrix is a vector, so the diagonal is subtracted from every row."""
    encoder = encoder / (jnp.linalg.norm(encoder, axis=0, keepdims=True) + EPS)
    decoder = decoder / (jnp.linalg.norm(decoder, axis=1, keepdims=True) + EPS)
    product = decoder @ encoder
    n = product.shape[0]
    return jnp.linalg.norm(product - jnp.diag(product)) / float(n * n - n)


def project(grads: Original, params: Original) -> Original:
    """Removes from the gradients of both decoders the component along each column."""

    def reject(gradient: Array, columns: Array, axis: int) -> Array:
        unit = columns / jnp.linalg.norm(columns, axis=axis, keepdims=True)
        return gradient - jnp.sum(gradient * unit, axis=axis, keepdims=True) * unit

    router = reject(grads.router_decoder, params.router_decoder, 0)
    return grads._replace(router_decoder=router, expert_decoder=reject(grads.expert_decoder, params.expert_decoder, 1))


def _renormalize(params: Original) -> Original:
    router, expert = params.router_decoder, params.expert_decoder
    return params._replace(
        router_decoder=router / jnp.linalg.norm(router, axis=0, keepdims=True),
        expert_decoder=expert / jnp.linalg.norm(expert, axis=1, keepdims=True),
    )


class OriginalTraining:
    """The compiled step and tracker, which its loop calls in turn; every call makes one update.

    `memory` is that of the step, without the tracker.
    """

    def __init__(self, params: Original, batch: Float[Array, "batch embed"], k: int):
        self.batch, self.state = batch, start(params)
        step = jax.jit(update, static_argnums=3).lower(params, self.state.opt_state, batch, k)
        self.step = step.compile()
        self.track = jax.jit(track).lower(self.state.tracker, step.out_info.selected).compile()
        self.memory, self.tracker_memory = Memory.of(self.step), Memory.of(self.track)

    def __call__(self) -> None:
        """One update; returns when it is done."""
        done = self.step(self.state.params, self.state.opt_state, self.batch)
        self.state = OriginalState(done.params, done.opt_state, self.track(self.state.tracker, done.selected))
        jax.block_until_ready((self.state, done.loss))


def memory_at(params: Original, batch: int, k: int) -> Memory:
    """The memory of its step for a batch of that many tokens, compiled but not run."""
    state = jax.eval_shape(start, params)
    x = jax.ShapeDtypeStruct((batch, params.router_encoder.shape[1]), params.router_encoder.dtype)
    return Memory.of(jax.jit(update, static_argnums=3).lower(state.params, state.opt_state, x, k).compile())
