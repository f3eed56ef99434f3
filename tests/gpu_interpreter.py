"""The parameters of Pallas' interpreter of GPU kernels."""

import importlib

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

# public from jax 0.11 on
PRIVATE = "jax._src.pallas.mosaic_gpu.interpret.params"
InterpretGPUParams = (plgpu if jax.__version_info__ >= (0, 11) else importlib.import_module(PRIVATE)).InterpretGPUParams
