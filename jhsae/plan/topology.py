"""A slice of chips that need not exist: ``v5p:4x4x4``, two of them as ``2*v5p:4x4x4``, or ``cpu:8``.

A TPU slice comes from its compiler, libtpu, as abstract devices (`jax.experimental.topologies`); ``cpu:N`` is N
simulated devices of this process, for counting without a TPU's compiler.
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

from jhsae.errors import UserError
from jhsae.plan.chips import CHIPS, Chip
from jhsae.plan.links import Places

NAME = re.compile(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)")
EXAMPLES = "v5p:4x4x4, v5e:16x16, v6e:16x16, v4:4x4x4, 2*v5p:4x4x4 (two slices), cpu:8"


class Topology(NamedTuple):
    """Devices of one or more slices; `chip` is None for simulated CPU devices, whose rates nobody knows."""

    name: str
    chip: Chip | None
    devices: Sequence[Any]

    @property
    def platform(self) -> str:
        return "tpu" if self.chip else "cpu"

    def places(self, devices: Sequence[Any]) -> Places:
        """Where these devices stand."""
        if self.chip is None:
            return Places(np.zeros((len(devices), 1), int), np.zeros(len(devices), int))
        slices = [getattr(device, "slice_index", None) or 0 for device in devices]
        return Places(np.asarray([device.coords for device in devices]), np.asarray(slices))


def topology(name: str) -> Topology:
    """The topology of that name. Raises `UserError` for one that is unknown, or whose compiler is not installed."""
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
        raise UserError(f"--topology {name} is not a slice that libtpu knows ({reason}); known: {EXAMPLES}") from error
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
        with suppress(RuntimeError):  # JAX has started: what it has is what there is
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology is {name}, but this process has {len(devices)} CPU devices; start it afresh")
    return devices[:count]
