"""One process owns a folder, another is told at once who does; what a killed owner left behind is in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

import jhsae
from jhsae.errors import UserError
from jhsae.files import lease, lock
from jhsae.files.lock import is_owned, owned

HOLD = """
import sys
from jhsae.files.lock import owned
with owned(sys.argv[1], "train"):
    print("mine", flush=True)
    sys.stdin.read()
"""


def holder(folder: str) -> subprocess.Popen:
    """A process that owns `folder` until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        env=os.environ | {"PYTHONPATH": str(Path(jhsae.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    return process


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["flock", "lease"])
def test_two_processes_one_gets_it_and_the_other_a_sentence(tmp_path, scheme):
    folder = f"{scheme}{tmp_path}/runs/a"
    process = holder(folder)
    sentence = rf"a is being written by process {process.pid} on .* \(jhsae train, since .*\); wait for it to end"
    with pytest.raises(UserError, match=sentence), owned(folder):
        pass
    with owned(f"{scheme}{tmp_path}/runs/b"):
        pass
    process.communicate()
    with owned(folder):
        assert is_owned(folder)
    assert not is_owned(folder) and not list((tmp_path / "runs").glob("*"))


def test_a_killed_owner_is_in_nobodys_way(tmp_path):
    process = holder(f"{tmp_path}/a")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [f.name for f in tmp_path.iterdir()] == [".a.jhsae-lock"]
    with owned(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_same_thread_may_own_it_again_and_another_may_not(tmp_path):
    said = []

    def other():
        try:
            with owned(tmp_path / "a"):
                said.append("mine")
        except UserError as error:
            said.append(str(error))

    with owned(tmp_path / "a", "quickstart"), owned(tmp_path / "x" / ".." / "a"), owned(tmp_path / "a" / "b"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1 and f"is being written by process {os.getpid()}" in said[0]


def test_two_names_of_one_folder_are_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    process = holder(f"{tmp_path}/a")
    with pytest.raises(UserError, match=rf"b is being written by process {process.pid}"), owned(tmp_path / "b"):
        pass
    process.communicate()


def test_an_error_inside_frees_it_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), owned(tmp_path / "deep" / "a"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_made_beside_it_the_lock_is_inside(tmp_path, monkeypatch):
    folder, take = tmp_path / "a", lock._take
    folder.mkdir()

    def refuse(asked, path):
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return take(asked, path)

    monkeypatch.setattr(lock, "_take", refuse)
    with owned(folder):
        assert [f.name for f in folder.iterdir()] == [".jhsae-lock"]
    assert not list(folder.iterdir())
    with pytest.raises(UserError, match=r"b cannot be written \(Permission denied"), owned(tmp_path / "b"):
        pass


def test_without_flock_an_owner_object_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with owned(tmp_path / "a", "train"):
        (file,) = tmp_path.iterdir()
        assert json.loads(file.read_bytes())["process"] == os.getpid()
        again = subprocess.run(
            [
                sys.executable,
                "-c",
                HOLD.replace("from", "import jhsae.files.lock as l; l.fcntl = None\nfrom"),
                f"{tmp_path}/a",
            ],
            env=os.environ | {"PYTHONPATH": str(Path(jhsae.__file__).parents[1])},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert f"is being written by process {os.getpid()}" in again.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def bucket(monkeypatch):
    """A folder in a bucket, whose file system is in memory."""
    files = MemoryFileSystem()
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: files)
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    return epath.Path("s3://bucket/runs/a")


def test_in_a_bucket_the_owner_is_an_object(bucket):
    place = bucket.parent / ".a.jhsae-lock"
    with owned(bucket, "train"):
        first = place.read_bytes()
        assert json.loads(first)["verb"] == "train"
    assert not place.exists()
    place.write_bytes(first)  # of a process that was killed a moment ago
    with pytest.raises(UserError, match=r"a is being written by process .* \(jhsae train"), owned(bucket):
        pass
    old = json.loads(first) | {"beat": time.time() - lease.LEASE - 1}
    for left in (json.dumps(old), "{", "[]"):  # and of one that was killed long ago, or wrote half
        place.write_bytes(left.encode())
        with owned(bucket):
            assert json.loads(place.read_bytes())["process"] == os.getpid()
        assert not place.exists()


def test_of_two_that_write_at_a_time_the_last_has_it(bucket, monkeypatch):
    place = bucket.parent / ".a.jhsae-lock"
    other = json.dumps({"process": 7, "host": "h", "beat": time.time()}).encode()
    monkeypatch.setattr(lease.time, "sleep", lambda _: place.write_bytes(other))
    with pytest.raises(UserError, match="a is being written by process 7 on h"), owned(bucket):
        pass
    assert place.read_bytes() == other


def test_a_heartbeat_renews_it_and_an_owner_that_lost_it_ends(bucket, monkeypatch, caplog):
    place, ended = bucket.parent / ".a.jhsae-lock", threading.Event()
    monkeypatch.setattr(lease, "LEASE", 0.5)
    monkeypatch.setattr(lease, "_end", lambda code: ended.set())
    with owned(bucket):
        first = json.loads(place.read_bytes())
        deadline = time.monotonic() + 20
        while json.loads(place.read_bytes())["beat"] == first["beat"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads(place.read_bytes())["beat"] > first["beat"] and not ended.is_set()
        place.write_bytes(json.dumps({"process": 7, "host": "h", "beat": time.time()}).encode())
        assert ended.wait(20)
    assert "is no longer owned by this process: another process has taken it over" in caplog.text
    assert json.loads(place.read_bytes())["process"] == 7
