"""The original's side of ``jhsae bench step``, compiled: its step and its tracker, which its loop calls in turn."""

import jax
from jaxtyping import Array, Float

from jhsae.bench import original
from jhsae.bench.memory import Memory
from jhsae.bench.original import Original, OriginalState


class OriginalTraining:
    """Every call makes one update of `batch` and counts its codes; `memory` is the step's, without the tracker."""

    def __init__(self, params: Original, batch: Float[Array, "batch embed"], k: int):
        self.batch, self.state = batch, original.start(params)
        step = jax.jit(original.update, static_argnums=3).lower(params, self.state.opt_state, batch, k)
        self.step = step.compile()
        self.track = jax.jit(original.track).lower(self.state.tracker, step.out_info.selected).compile()
        self.memory, self.tracker_memory = Memory.of(self.step), Memory.of(self.track)

    def __call__(self) -> None:
        """One update; returns when it is done."""
        done = self.step(self.state.params, self.state.opt_state, self.batch)
        self.state = OriginalState(done.params, done.opt_state, self.track(self.state.tracker, done.selected))
        jax.block_until_ready((self.state, done.loss))


def memory_at(params: Original, batch: int, k: int) -> Memory:
    """What its step would need for a batch of that many tokens, which is compiled and not run."""
    state = jax.eval_shape(original.start, params)
    x = jax.ShapeDtypeStruct((batch, params.router_encoder.shape[1]), params.router_encoder.dtype)
    return Memory.of(jax.jit(original.update, static_argnums=3).lower(state.params, state.opt_state, x, k).compile())
