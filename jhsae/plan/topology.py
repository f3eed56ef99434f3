"""Topologies: slices of TPU chips that need not exist, and the rates of one chip.

``v5p:4x4x4`` is one slice, ``2*v5p:4x4x4`` are two. A TPU slice comes from its compiler, libtpu, as abstract devices
(`jax.experimental.topologies`); ``cpu:N`` is N simulated devices of this process, for counting without libtpu.

Rates are those of Google Cloud's public pages (https://cloud.google.com/tpu/docs, "TPU v4" to "TPU v6e", read in
November 2026). ``ici`` is what one link sends in one direction: the page's bandwidth per chip over its links, halved
where the page counts both directions. ``hbm`` is what a program may use of the 32, 16, 95 and 32 GiB of the pages, as
the compiler (libtpu 0.0.42) reports it for programs that are too large.
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jaxtyping import Int

from jhsae.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """Rates of one chip; None where no public page gives one."""

    name: str
    flops: float
    """bfloat16 products, FLOP/s. Float32 operands run at this rate too: by default XLA rounds them to bfloat16."""
    mxu: int
    """Rows and columns of a matrix unit: a product's sizes are rounded up to it."""
    hbm: float
    """Bytes of main memory that a program may use."""
    bandwidth: float
    """Bytes/s of main memory."""
    ici: float
    """Bytes/s that one link sends."""
    axes: int
    """Axes of the torus; two links each."""
    wraps: int
    """A slice is a ring along an axis whose size is a multiple of this; along others it is a line."""
    dcn: float | None
    """Bytes/s between slices, per chip."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 128, 30.75 * GIB, 1228e9, 50e9, 3, 4, None),
        Chip("v5e", 197e12, 128, 15.75 * GIB, 819e9, 50e9, 2, 16, 3.125e9),
        Chip("v5p", 459e12, 128, 95.74 * GIB, 2765e9, 100e9, 3, 4, 6.25e9),
        Chip("v6e", 918e12, 256, 31.25 * GIB, 1600e9, 100e9, 2, 16, 12.5e9),
    )
}


NAME = re.compile(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)")
EXAMPLES = "v5p:4x4x4, v5e:16x16, v6e:16x16, v4:4x4x4, 2*v5p:4x4x4 (two slices), cpu:8"


class Places(NamedTuple):
    """Coordinates and slices of the chips of a mesh, in the order of the mesh."""

    coordinates: Int[np.ndarray, "chips axes"]
    slices: Int[np.ndarray, " chips"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of a slice."""
        return tuple(int(n) + 1 for n in self.coordinates.max(axis=0))


class Topology(NamedTuple):
    """Devices of one or more slices; `chip` is None for simulated CPU devices, whose rates are unknown."""

    name: str
    chip: Chip | None
    devices: Sequence[Any]

    @property
    def platform(self) -> str:
        return "tpu" if self.chip else "cpu"

    def places(self, devices: Sequence[Any]) -> Places:
        """Coordinates and slices of these devices."""
        if self.chip is None:
            return Places(np.zeros((len(devices), 1), int), np.zeros(len(devices), int))
        slices = [getattr(device, "slice_index", None) or 0 for device in devices]
        return Places(np.asarray([device.coords for device in devices]), np.asarray(slices))


def topology(name: str) -> Topology:
    """Parses the name of a topology.

    Args:
        name: ``CHIP:SHAPE``, ``SLICES*CHIP:SHAPE`` or ``cpu:N``.

    Raises:
        UserError: The name is unknown, or its compiler is not installed.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise UserError(f"--topology is {name!r}, expected a chip and its numbers of chips; known: {EXAMPLES}")
    slices, kind, shape = int(found[1] or 1), found[2], found[3]
    if kind == "cpu":
        return Topology(name, None, _simulated(name, slices, shape))
    if kind not in CHIPS:
        raise UserError(
            f"--topology names the chip {kind!r}; known: {', '.join(CHIPS)} and cpu ({EXAMPLES}). A GPU's compiler "
            "needs a GPU: there, cpu:8 counts FLOPs, memory and collectives of 8 devices without times"
        )
    use_libtpu()
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":  # or its two cores are two devices
        more["chip_config_name"] = "megacore"
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **more)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {name} is unknown to libtpu ({reason}); known: {EXAMPLES}") from error
    return Topology(name, CHIPS[kind], description.devices)


def use_libtpu() -> None:
    """Points JAX at libtpu as a compiler; programs are traced and described on CPU.

    Raises `UserError` when libtpu is not installed.
    """
    # or libtpu looks for the machine that it would run on, and lets one process alone load it
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    jax.config.update("jax_platforms", "cpu")
    if "TPU_LIBRARY_PATH" not in os.environ:
        spec = importlib.util.find_spec("libtpu")
        if spec is None or not spec.submodule_search_locations:
            raise UserError("the TPU compiler (libtpu) is not installed; write pip install 'jhsae[tpu]'")
        os.environ["TPU_LIBRARY_PATH"] = str(Path(spec.submodule_search_locations[0]) / "libtpu.so")


def _simulated(name: str, slices: int, shape: str) -> list[Any]:
    if slices > 1 or "x" in shape:
        raise UserError(f"--topology is {name!r}; simulated devices are written cpu:8")
    count = int(shape)
    jax.config.update("jax_platforms", "cpu")  # or programs would be traced with an accelerator as the default
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with suppress(RuntimeError):  # JAX has started and keeps the devices it has
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology is {name}, but this process has {len(devices)} CPU devices; start it afresh")
    return devices[:count]
