"""The training loop: config, stages, step, loop, checkpoints, run folder; `fit` for arrays."""
