"""Several processes as one run: joining them, which one writes, waiting for each other, which rows each reads.

A launcher that JAX knows (TPU pods, GKE, SLURM, Open MPI, Kubernetes jobs) is found by JAX itself; elsewhere three
environment variables say the same: ``JHSAE_COORDINATOR=host:port JHSAE_PROCESSES=2 JHSAE_PROCESS=0``. A process that
is alone is left alone. ``JHSAE_TIMEOUT`` is the number of seconds after which a silent process is given up (60).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

# jax has no public way to ask whether there is a cluster, nor to wait with a time limit
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from jhsae.errors import UserError

NAMES = ("JHSAE_COORDINATOR", "JHSAE_PROCESSES", "JHSAE_PROCESS")
START_SECONDS = 300  # nodes of one job do not start in the same minute


def initialize() -> None:
    """Joins the other processes of this run; call it before anything touches a device. Alone, it does nothing.

    Raises:
        UserError: some of the three variables without the others, or not numbers.
    """
    if jax.distributed.is_initialized():
        return
    given = _given(os.environ)
    if given is None and not _launched():
        return
    address, processes, process = given or (None, None, None)
    jax.distributed.initialize(
        address,
        processes,
        process,
        cluster_detection_method="deactivate" if given else None,
        initialization_timeout=START_SECONDS,
        heartbeat_timeout_seconds=2 * timeout(),  # `Watchdog` is to speak first: it says what to do
        shutdown_timeout_seconds=timeout(),
    )


def timeout() -> int:
    """Seconds without a sign of life after which a process counts as lost: ``JHSAE_TIMEOUT``."""
    text = os.environ.get("JHSAE_TIMEOUT", "60")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"JHSAE_TIMEOUT is {text!r}, expected a number of seconds of at least 1")
    return int(text)


def is_main() -> bool:
    """True in the one process that writes reports and speaks."""
    return jax.process_index() == 0


def several() -> bool:
    """True when this run has more than one process."""
    return jax.process_count() > 1


def barrier(name: str, seconds: int) -> None:
    """Waits until every process is here; a `jax.errors.JaxRuntimeError` names the missing ones after `seconds`."""
    if several():
        coordinator().wait_at_barrier(f"jhsae {name}", timeout_in_ms=1000 * seconds)


def coordinator() -> Any:
    """JAX's client of the process that keeps the others together."""
    return global_state.client


def gathered(array: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."] | None:
    """The whole of an array that is spread over processes, in the main one; None in the others. All must call it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array) if is_main() else None
    whole = process_allgather(array, tiled=True)
    return whole if is_main() else None


@dataclass(frozen=True)
class Share:
    """Which of `count` equal shares of the batch this process feeds to its devices."""

    index: int
    count: int


def share_of(mesh: Mesh) -> Share:
    """The share of this process."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return shares(owners.reshape(-1, owners.shape[-1]))[jax.process_index()]


def shares(owners: Int[np.ndarray, "rows expert"]) -> dict[int, Share]:
    """Process -> share, from the process that owns each device; those that split experts feed the same rows.

    Raises `UserError` where processes hold different numbers of rows, or overlap in part.
    """
    rows = {int(p): tuple(np.nonzero((owners == p).any(axis=1))[0].tolist()) for p in np.unique(owners)}
    found = sorted(set(rows.values()))
    size = len(found[0])
    if found != [tuple(range(i * size, (i + 1) * size)) for i in range(len(found))]:
        raise UserError(
            f"mesh: data {len(owners)} x expert {owners.shape[1]} gives the {len(rows)} processes unequal shares of "
            "the batch; write a mesh.expert that divides, or is a multiple of, the number of devices of one process"
        )
    return {process: Share(found.index(its), len(found)) for process, its in rows.items()}


def _given(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """The three variables, or None where none is set."""
    address, processes, process = values = [environment.get(name, "") for name in NAMES]
    if not any(values):
        return None
    numbers = processes.isdecimal() and process.isdecimal() and int(process) < int(processes)
    if not (numbers and address.rpartition(":")[2].isdecimal()):
        got = ", ".join(f"{name} is {value or 'not set'}" for name, value in zip(NAMES, values, strict=True))
        raise UserError(
            f"{got}; write all three, e.g. {NAMES[0]}=10.0.0.1:1234 {NAMES[1]}=4 and {NAMES[2]}= 0 to 3, or none"
        )
    return address, int(processes), int(process)


def _launched() -> bool:
    """Did a launcher that JAX knows start more than one process?

    One process under SLURM is not joined to anybody: JAX would hide all but one of its GPUs. Kubernetes is asked only
    in an indexed job, since in any other pod the question needs rights that the pod may lack.
    """
    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    indexed = "JOB_COMPLETION_INDEX" in os.environ
    found = next((k for k in kinds if (indexed or k.__name__ != "K8sCluster") and k.is_env_present()), None)
    return found is not None and found.get_process_count() > 1
