"""Who belongs to the run, and which rows each process reads. Real processes: test_two_processes."""

import os

import jax
import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.parallel import distributed
from jhsae.parallel.distributed import NAMES, Share, share_of, shares

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[03-05]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "3",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.fixture
def joined(monkeypatch):
    """What `initialize` hands to JAX, in an environment without any launcher."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JHSAE_", "KUBERNETES_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    return calls


def test_alone_nothing_is_joined(joined):
    distributed.initialize()
    assert joined == []


@pytest.mark.parametrize("launcher", [SLURM, OPEN_MPI], ids=["slurm", "open mpi"])
def test_jax_itself_joins_what_a_launcher_started(joined, monkeypatch, launcher):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    ((given, options),) = joined
    assert given == (None, None, None) and options["cluster_detection_method"] is None


@pytest.mark.parametrize(
    "launcher",
    [
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "3"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
    ids=["one slurm task", "one rank", "a shell in an allocation", "any pod"],
)
def test_one_process_of_a_cluster_is_left_alone(joined, monkeypatch, launcher):
    """A single SLURM task that joined would see one GPU of its node."""
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert joined == []


def test_what_is_given_goes_before_any_launcher(joined, monkeypatch):
    for name, value in (SLURM | dict(zip(NAMES, ("10.0.0.1:1234", "4", "3"), strict=True))).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JHSAE_TIMEOUT", "7")
    distributed.initialize()
    ((given, options),) = joined
    assert given == ("10.0.0.1:1234", 4, 3)
    assert options["cluster_detection_method"] == "deactivate"
    assert options["heartbeat_timeout_seconds"] == 14 and options["shutdown_timeout_seconds"] == 7


@pytest.mark.parametrize(
    "values", [("", "4", "3"), ("10.0.0.1:1234", "", "0"), ("h:1", "4", "4"), ("h:1", "two", "0"), ("h", "2", "0")]
)
def test_half_of_an_address_is_refused(joined, monkeypatch, values):
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"JHSAE_COORDINATOR is .*; write all three, e.g. JHSAE_COORDINATOR=10.0.0.1"):
        distributed.initialize()
    assert joined == []


@pytest.mark.parametrize("text", ["0", "-3", "soon", ""])
def test_a_timeout_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv("JHSAE_TIMEOUT", text)
    with pytest.raises(UserError, match=r"JHSAE_TIMEOUT is .*, expected a number of seconds of at least 1"):
        distributed.timeout()


@pytest.mark.parametrize(
    ("owners", "expert", "expected"),
    [
        ([0] * 8, 1, [(0, 1)]),
        ([0] * 4 + [1] * 4, 1, [(0, 2), (1, 2)]),
        ([1] * 4 + [0] * 4, 1, [(1, 2), (0, 2)]),
        ([0] * 4 + [1] * 4, 2, [(0, 2), (1, 2)]),
        ([0] * 4 + [1] * 4, 8, [(0, 1), (0, 1)]),
        ([0, 0, 1, 1, 2, 2, 3, 3], 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([0, 1, 0, 1, 2, 3, 2, 3], 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
)
def test_processes_that_share_experts_read_the_same_rows(owners, expert, expected):
    found = shares(np.array(owners).reshape(-1, expert))
    assert found == {process: Share(*share) for process, share in enumerate(expected)}


@pytest.mark.parametrize(("owners", "expert"), [([0] * 4 + [1] * 4 + [2] * 4, 6), ([0, 1, 0, 1], 1), ([0, 0, 0, 1], 1)])
def test_unequal_shares_are_refused(owners, expert):
    with pytest.raises(UserError, match=r"unequal shares of the batch; write a mesh.expert that divides"):
        shares(np.array(owners).reshape(-1, expert))


def test_one_process_is_main_has_the_whole_and_waits_for_nobody():
    assert distributed.is_main() and not distributed.several()
    assert share_of(jax.make_mesh((1, 8, 1), ("host", "data", "expert"))) == Share(0, 1)
    np.testing.assert_array_equal(distributed.gathered(jax.numpy.arange(3)), [0, 1, 2])
    distributed.barrier("nobody", 1)
