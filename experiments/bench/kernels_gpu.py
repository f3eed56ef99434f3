"""The kernels for NVIDIA GPUs compiled for an H100 without one: registers, occupancy, bytes, and the step's traffic.

    pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12    # at the version of jax; or cuda13
    python experiments/bench/kernels_gpu.py [--step] [--json FILE] [--embed 512 ...]

Registers, spills and static shared memory are those of ptxas, which must be on the PATH. Bytes are estimates: every
pair reads what its kernel reads for it, from main memory or, where slices of columns should fit, from the second-level
cache. ``--step`` compiles the step of `scale.yaml` too, plain and with kernels, in both formats (minutes each), and
counts its traffic as `jhsae plan` does; the compiler's text counts the rows that `project` gathers once, so the rest is
added. Times are the roofline's: the most of bytes over bandwidths; nothing here has run. The rate of the cache is an
assumption. Exit code 1: a kernel spills registers or does not compile.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jhsae import config as cfg
from jhsae.bench.inputs import Shape
from jhsae.files.bounded import to_json
from jhsae.files.folders import append_line
from jhsae.ops.pallas import wide_gpu
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.plan.by_operation import traffic_of
from jhsae.plan.cost import work_of
from jhsae.plan.estimate import memory_of
from jhsae.plan.lowering import lower_train, stage_of, tile_load
from jhsae.training.config import Train

# NVIDIA H100 SXM5, data sheet and compute capability 9.0
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
HBM, CACHE = 3.352e12, 5.5e12  # bytes a second; the second is assumed
REGISTERS, WARPS = 65_536, 64  # of a streaming multiprocessor
USED = re.compile(r"(\d+) bytes spill stores[\s\S]*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?")
FORMATS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
GB = 1e9


class Case(NamedTuple):
    """A kernel, the shapes of its arguments, and its bytes to and from main memory and the cache."""

    name: str
    kernel: Callable[..., Any]
    shapes: tuple[Any, ...]
    hbm: float
    cache: float


def cases(shape: Shape, dtype: Any) -> Iterator[Case]:
    """The kernels of a step. Small tables count once for every slice of columns that reads them."""
    batch, k, experts, sub, embed = shape.batch, shape.k, shape.experts, shape.sub, shape.embed
    pairs, size, rows = batch * k, jnp.dtype(dtype).itemsize, wide_gpu.ROWS
    tiles = pairs // rows + experts
    array = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype)  # noqa: E731
    number, wide = jnp.int32, 4 * experts * sub * embed
    x, row = array(dtype, batch, embed), pairs * embed * size
    project = (x, array(jnp.float32, experts, sub, embed), *(array(number, tiles),) * 2, array(number, tiles, rows))
    yield Case("project", wide_gpu.project, project, row + wide + 4 * tiles * rows * (sub + 1), 0)
    slices = embed // wide_gpu.columns_of_weights(embed, batch, size)
    weights = (x, array(jnp.float32, tiles * rows, sub + 1), array(number, tiles * rows))
    weights = (*weights, wide_gpu.Groups(array(number, experts), array(number, experts)))
    table = 4 * pairs * (1 + 4 * -(-(sub + 1) // 4)) * slices
    yield Case("weights", wide_gpu.weights, weights, batch * embed * size + table + wide * (sub + 1) / sub, row)
    parts = wide_gpu.parts_of_spread(experts, sub, size)
    slices = embed // wide_gpu.THREADS * parts
    spread = (array(jnp.float32, batch, k, sub), array(number, batch, k), array(dtype, experts, sub, embed))
    moved = (
        wide / 4 * size
        + 4 * pairs * (1 + sub / parts) * slices
        + 4 * batch * embed * (2 * parts + 1 if parts > 1 else 1)
    )
    yield Case("spread", wide_gpu.spread, spread, moved, row * sub)


def device() -> Any:
    """An H100 to compile for; programs are traced on a CPU."""
    jax.config.update("jax_platforms", "cpu")
    found = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1")
    return found.devices[0]


def compiled(case: Case, on: Any) -> dict[str, Any]:
    """What ptxas says of a kernel, and how many blocks of it a multiprocessor holds."""
    place = lambda a: a.update(sharding=SingleDeviceSharding(on))  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_TO": folder}
        os.environ |= wanted
        jax.jit(case.kernel).lower(*jax.tree.map(place, case.shapes)).compile()
        for name in wanted:  # or the step's kernels are printed
            del os.environ[name]
        (text,) = (file.read_text() for file in Path(folder).glob("*.ptxas"))
    found = USED.search(text)
    assert found is not None, text
    registers = int(found[2])
    blocks = min(REGISTERS // (wide_gpu.THREADS * (registers + -registers % 8)), WARPS * 32 // wide_gpu.THREADS)
    return {
        "registers": registers,
        "spilled_bytes": int(found[1]),
        "static_shared_bytes": int(found[3] or 0),
        "blocks_per_multiprocessor": blocks,
        "hbm_bytes": case.hbm,
        "cache_bytes": case.cache,
        "roofline_ms": 1000 * max(case.hbm / HBM, case.cache / CACHE),
    }


def step(on: Any, precision: str, kernels: bool) -> dict[str, Any]:
    """Memory and traffic of the compiled step of `scale.yaml`."""
    keys = ["sae.kernel=gpu", "sae.route.topk=gpu"] if kernels else []
    config = cfg.load(Train, cfg.find("scale.yaml"), [*keys, f"precision={precision}"])
    mesh = make_mesh(MeshShape(), [on])
    program = lower_train(config, stage_of(config, None), mesh, "cuda").program.compile()
    text = program.as_text() or ""
    load = tile_load(config, mesh, "cuda")
    assert load is not None
    work = work_of(text, 1, load)
    rows = 2 * (load.pairs - config.data.batch) * cfg.to_dict(config)["sae"]["embed"]
    moved = work.bytes + kernels * rows * jnp.dtype(precision).itemsize
    return {
        "hbm_bytes": moved,
        "flops": work.flops,
        "roofline_ms": 1000 * moved / HBM,
        **{f"{part}_bytes": size for part, size in memory_of(program).items()},
        "traffic": [row._asdict() for row in traffic_of(work, text)[:20]],
        "config_hash": cfg.config_hash(config),
    }


def main() -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("embed", 2304), ("experts", 16_384), ("batch", 32_512), ("sub", 4), ("k", 32)):
        top.add_argument(f"--{name}", type=int, default=number, help="(%(default)s)")
    top.add_argument("--step", action="store_true", help="compile the step of scale.yaml as well")
    top.add_argument("--json", type=Path, help="append one row per program")
    words = top.parse_args()
    shape, on, good = Shape(words.embed, words.experts, words.batch, words.sub, k=words.k), device(), True

    def give(row: dict[str, Any], text: str) -> None:
        print(text, flush=True)
        if words.json:
            append_line(words.json, to_json(row | {"device": "H100, not run", **cfg.provenance()}))

    for name, dtype in FORMATS.items():
        for case in cases(shape, dtype):
            row = {"kernel": case.name, "format": name, "shape": shape.__dict__} | compiled(case, on)
            good &= not row["spilled_bytes"]
            give(
                row,
                f"{name:9} {case.name:8} {row['registers']} registers, {row['spilled_bytes']} bytes spilled, "
                f"{row['blocks_per_multiprocessor']} blocks; {case.hbm / GB:.2f} GB from memory, "
                f"{case.cache / GB:.2f} from the cache: {row['roofline_ms']:.2f} ms",
            )
    for name in FORMATS if words.step else ():
        for kernels in (False, True):
            row = {"step": "kernels" if kernels else "plain", "format": name} | step(on, name, kernels)
            text = f"{row['hbm_bytes'] / GB:.1f} GB ({row['roofline_ms']:.1f} ms), {row['flops'] / 1e12:.1f} TFLOP"
            give(row, f"{name:9} step, {row['step']}: {text}; {row['temp_bytes'] / 2**30:.2f} GiB of temporaries")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
