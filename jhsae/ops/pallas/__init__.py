"""Kernels for accelerators (Pallas); each equals the plain operation of the same name in `jhsae.ops`."""

from .topk_gpu import topk_gpu as topk_gpu
from .topk_tpu import topk_tpu as topk_tpu
