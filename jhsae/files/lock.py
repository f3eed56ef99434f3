"""Ownership of a folder while it is written: one process holds the lock, others get an error that names the owner.

Local: the file ``.<folder>.jhsae-lock`` beside the folder, locked with flock and removed at the end. The operating
system releases the lock when the process ends, so a file without a lock is stale. Where no file can
be created beside the folder, the file is ``.jhsae-lock`` in it. The file contains the owner: process, host, verb, time.

Network file systems: NFS from version 3 with a lock daemon and NFS 4 pass flock on to the server, so that it holds
between machines; an NFS mounted with ``local_lock`` or ``nolock``, and Lustre mounted with ``localflock``, keep it
within one machine. Where there is no flock at all (Lustre without ``flock``, Windows) and in buckets, an owner object
of the same name with a heartbeat replaces it: see `lease`.

Of the several processes of one run only the main one owns the folder.
"""

import errno
import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tensorstore as ts
from etils import epath

from jhsae.errors import UserError
from jhsae.files.folders import Folder, is_bucket, writing
from jhsae.files.lease import Conditional, Settling, busy, leased, parsed

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".jhsae-lock"  # not a name of user files
TAKEN = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}

_mine: dict[str, int] = {}  # folders owned by this process -> the owning thread
_guard = threading.Lock()


@contextmanager
def owned(folder: str | Folder, verb: str = "") -> Iterator[None]:
    """Owns `folder`, which need not exist, until the block ends. Reentrant within a thread.

    Args:
        folder: local or in a bucket; there a string goes through tensorstore (stores), a path through epath (runs).
        verb: The command (``train``), for the error of other processes.

    Raises:
        UserError: another process or thread owns it, or nothing can be written there.
    """
    name = _name(folder)
    with _guard:
        holder = _mine.get(name)
        if holder not in (None, threading.get_ident()):
            raise busy(folder, _record(verb))
        if holder is None:
            _mine[name] = threading.get_ident()
    if holder is not None:
        yield
        return
    try:
        with _held(folder, name, _record(verb)):
            yield
    finally:
        with _guard:
            del _mine[name]


def is_owned(folder: str | Folder) -> bool:
    """True where this thread owns the folder."""
    return _mine.get(_name(folder)) == threading.get_ident()


def _name(folder: str | Folder) -> str:
    return str(folder).rstrip("/") if is_bucket(folder) else os.path.realpath(folder)


def _record(verb: str) -> dict[str, Any]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": platform.node(), "verb": verb, "since": started}


def _hidden(name: str) -> str:
    return f".{name}{SUFFIX}"


def _held(folder: str | Folder, name: str, record: dict[str, Any]) -> AbstractContextManager[None]:
    if not is_bucket(folder):
        return _locked(Path(folder), Path(name), record)
    root, _, last = name.rpartition("/")
    root, key = (name, SUFFIX) if root.endswith(":/") else (root, _hidden(last))
    if not isinstance(folder, str):
        return leased(folder, Settling(epath.Path(root) / key), record)
    try:
        return leased(folder, Conditional(ts.KvStore.open(f"{root}/").result(), key), record)
    except ValueError as error:
        raise UserError(f"{folder} cannot be opened ({' '.join(str(error).split())[:200]})") from error


@contextmanager
def _locked(folder: Path, real: Path, record: dict[str, Any]) -> Iterator[None]:
    """Holds the lock file of a local folder."""
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder} is a link to {os.readlink(folder)}, which does not exist; write another path")
    if not real.name:
        raise UserError(f"{folder} is the root of all files; write the path of a folder in it")
    beside, inside = real.with_name(_hidden(real.name)), real / SUFFIX
    with _parents(folder, real.parent):
        try:
            with writing(folder):
                path, number = _first(folder, beside, inside)
        except NotImplementedError:
            number = None
        if number is None:
            spec = {"driver": "file", "path": f"{real.parent}/", "file_io_locking": {"mode": "lockfile"}}
            with leased(folder, Conditional(ts.KvStore.open(spec).result(), beside.name), record):
                yield
            return
        try:
            os.ftruncate(number, 0)
            os.write(number, json.dumps(record).encode())
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked, so that a process that opened it detects the removal
            os.close(number)


def _first(folder: Path, beside: Path, inside: Path) -> tuple[Path, int | None]:
    try:
        return beside, _take(folder, beside)
    except OSError as error:
        if error.errno not in READ_ONLY or not inside.parent.is_dir():
            raise
    return inside, _take(folder, inside)


def _take(folder: Path, path: Path) -> int:
    """The open and locked file `path`.

    Raises:
        UserError: another process holds it.
        NotImplementedError: there is no flock here.
    """
    if fcntl is None:
        raise NotImplementedError
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = parsed(os.read(number, 4096))
            os.close(number)
            if error.errno in TAKEN:
                raise busy(folder, owner) from error
            if error.errno in NO_FLOCK:
                raise NotImplementedError from error
            raise
        if _still_there(path, number):
            return number
        os.close(number)  # the owner removed it between the two calls


def _still_there(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False


@contextmanager
def _parents(folder: Path, parent: Path) -> Iterator[None]:
    """Creates the parent folders; removes those that stay empty."""
    missing = [p for p in (parent, *parent.parents) if not p.exists()]
    with writing(folder):
        parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for made in missing:
            with suppress(OSError):  # not empty
                made.rmdir()
