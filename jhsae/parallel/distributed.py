"""Multi-process runs: joining, process 0, barriers, and which rows each process reads.

JAX detects the launchers it knows (TPU pods, GKE, SLURM, Open MPI, Kubernetes jobs); elsewhere three environment
variables configure it: ``JHSAE_COORDINATOR=host:port JHSAE_PROCESSES=2 JHSAE_PROCESS=0``. Without either, the run has
one process. ``JHSAE_TIMEOUT`` is the number of seconds after which a silent process counts as lost (60).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

# jax 0.10 to 0.12 has no public name for the launchers it detects, nor for the client of the coordinator, which alone
# offers barriers with a timeout and the key-value store of the watchdog
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from jhsae.errors import UserError

NAMES = ("JHSAE_COORDINATOR", "JHSAE_PROCESSES", "JHSAE_PROCESS")
START_SECONDS = 300  # nodes of one job do not start in the same minute


def initialize() -> None:
    """Joins the other processes of this run, before anything touches a device; without others it does nothing.

    Raises:
        UserError: Some of the three variables without the others, or not numbers.
    """
    if initialized():
        return
    given = _parse(os.environ)
    if given is None and not _launched():
        return
    address, processes, process = given or (None, None, None)
    jax.distributed.initialize(
        address,
        processes,
        process,
        cluster_detection_method="deactivate" if given else None,
        initialization_timeout=START_SECONDS,
        heartbeat_timeout_seconds=2 * timeout(),  # after `Watchdog`, whose message says what to do
        shutdown_timeout_seconds=timeout(),
    )


def initialized() -> bool:
    """True when this process has joined others."""
    return jax.distributed.is_initialized()


def timeout() -> int:
    """Seconds without a heartbeat after which a process counts as lost: ``JHSAE_TIMEOUT``.

    Raises:
        UserError: The variable is no integer of at least 1.
    """
    text = os.environ.get("JHSAE_TIMEOUT", "60")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"JHSAE_TIMEOUT is {text!r}, expected a number of seconds of at least 1")
    return int(text)


def is_main() -> bool:
    """True on process 0, the only one that logs and writes."""
    return jax.process_index() == 0


def several() -> bool:
    """True when this run has more than one process."""
    return jax.process_count() > 1


def barrier(name: str, seconds: int) -> None:
    """Waits until every process has called it with the same name.

    Args:
        name: A name that is used for one barrier of the run alone.
        seconds: Timeout.

    Raises:
        jax.errors.JaxRuntimeError: The timeout has passed; names the missing processes.
    """
    if several():
        coordinator().wait_at_barrier(f"jhsae {name}", timeout_in_ms=1000 * seconds)


def coordinator() -> Any:
    """JAX's client of the coordination service, which process 0 runs."""
    return global_state.client


def gathered(array: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."] | None:
    """Gathers an array whose shards lie on several processes; a collective, so all must call it.

    Returns:
        The whole array on process 0, None on the others.
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array) if is_main() else None
    whole = process_allgather(array, tiled=True)
    return whole if is_main() else None


@dataclass(frozen=True)
class Share:
    """Which of `count` equal slices of the batch a process reads; processes that split experts read the same one."""

    index: int
    count: int


def share_of(mesh: Mesh) -> Share:
    """The slice of the batch that this process reads. Raises what `shares` does."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return shares(owners.reshape(-1, owners.shape[-1]))[jax.process_index()]


def shares(owners: Int[np.ndarray, "rows expert"]) -> dict[int, Share]:
    """The slice of the batch that each process reads.

    Args:
        owners: Index of the process that owns each device of the mesh, [data, expert].

    Returns:
        Process index -> share.

    Raises:
        UserError: Processes that hold different numbers of rows, or that overlap in part.
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


def _parse(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """Coordinator, number of processes and index of this one; None where none of the variables is set."""
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
    """True when a launcher that JAX detects started more than one process.

    A single process under SLURM is not initialised, since JAX would hide all but one of its GPUs. Kubernetes is
    detected in indexed jobs alone: in any other pod the detection needs permissions that the pod may lack.
    """
    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    indexed = "JOB_COMPLETION_INDEX" in os.environ
    found = next((k for k in kinds if (indexed or k.__name__ != "K8sCluster") and k.is_env_present()), None)
    return found is not None and found.get_process_count() > 1
