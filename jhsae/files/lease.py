"""Leases: an owner object for a folder where flock is unavailable (see `lock`).

The object is created if absent, renewed by a heartbeat, and taken over by another process when the heartbeat is older
than `LEASE` seconds. Clocks must agree to a fraction of that. A process that loses its lease exits at once, because
another one may be writing.
"""

import json
import logging
import os
import sys
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorstore as ts
from etils import epath

from jhsae.errors import UserError

logger = logging.getLogger(__name__)
LEASE = 300.0
SETTLE = 1.0
BEATS = 10  # heartbeats in a lease
LOST = 75  # the exit code of a command that may be retried


class BusyError(UserError):
    """Another process owns the folder."""


def busy(folder: object, owner: dict[str, Any]) -> BusyError:
    """The error of a process that finds `owner` at a folder."""
    who = f"process {owner['process']} on {owner['host']}" if {"process", "host"} <= owner.keys() else "another process"
    details = [f"jhsae {owner['verb']}"] if owner.get("verb") else []
    details += [f"since {owner['since']}"] if owner.get("since") else []
    named = f" ({', '.join(details)})" if details else ""
    return BusyError(f"{folder} is being written by {who}{named}; wait for it to end, or write another path")


def parsed(value: bytes) -> dict[str, Any]:
    """The fields of an owner object; empty before its first write."""
    try:
        found = json.loads(value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class AbstractObject(ABC):
    """One object in a key-value store, with conditional writes."""

    @abstractmethod
    def read(self) -> tuple[bytes, Any]:
        """Its content (empty where absent), and its version."""

    @abstractmethod
    def write(self, value: bytes | None, before: Any) -> Any:
        """Writes it, or deletes it (None), if it is still at version `before`; returns the new version, or None."""


class Conditional(AbstractObject):
    """Through tensorstore, which has conditional writes."""

    def __init__(self, store: ts.KvStore, key: str):
        self._store, self._key = store, key

    def read(self) -> tuple[bytes, Any]:
        found = self._store.read(self._key).result()
        return found.value, found.stamp.generation

    def write(self, value: bytes | None, before: Any) -> Any:
        return self._store.write(self._key, value, if_equal=before).result().generation or None


class Settling(AbstractObject):
    """Through epath, without conditional writes: the last of several concurrent writes wins.

    Each writer waits `SETTLE` seconds and checks whether its own object is still there.
    """

    def __init__(self, path: epath.Path):
        self._path = path

    def read(self) -> tuple[bytes, Any]:
        value = self._path.read_bytes() if self._path.exists() else b""
        return value, value

    def write(self, value: bytes | None, before: Any) -> Any:
        if self.read()[0] != before:
            return None
        if value is None:
            self._path.unlink()
            return b""
        self._path.write_bytes(value)
        if not before:
            time.sleep(SETTLE)
        return value if self.read()[0] == value else None


@contextmanager
def leased(folder: object, place: AbstractObject, record: dict[str, Any]) -> Iterator[None]:
    """Holds the owner object at `place`, renewed by a thread. `UserError`: another process holds it."""
    record = record | {"id": uuid.uuid4().hex}
    try:
        value, version = place.read()
        if abs(time.time() - _beat(value)) < LEASE:
            raise busy(folder, parsed(value))
        version = place.write(_text(record), version)
        if version is None:
            raise busy(folder, parsed(place.read()[0]))
    except (ValueError, OSError) as error:  # tensorstore's and epath's
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} cannot be written ({' '.join(str(error).split())[:200]})") from error
    heart = _Heart(folder, place, record, version)
    heart.start()
    try:
        yield
    finally:
        heart.stop()


class _Heart(threading.Thread):
    """Renews an owner object. Ends the process if the lease is lost."""

    def __init__(self, folder: object, place: AbstractObject, record: dict[str, Any], version: Any):
        super().__init__(name="jhsae owner", daemon=True)
        self._folder, self._place, self._record, self._version = folder, place, record, version
        self._stop_now, self._last = threading.Event(), time.monotonic()

    def run(self) -> None:
        while not self._stop_now.wait(LEASE / BEATS):
            reason = "another process has taken it over"
            try:
                self._version = self._place.write(_text(self._record), self._version)
                self._last = time.monotonic()
            except (ValueError, OSError) as error:  # tolerate some failed heartbeats
                reason = f"the owner object cannot be renewed ({' '.join(str(error).split())[:200]})"
            if self._version is None or time.monotonic() - self._last > LEASE * (1 - 2 / BEATS):
                logger.error(f"jhsae: error: {self._folder} is no longer owned by this process: {reason}")
                _end(LOST)
                return

    def stop(self) -> None:
        """Deletes the object if this process still owns it."""
        self._stop_now.set()
        self.join()
        try:
            if self._version is not None:
                self._place.write(None, self._version)
        except (ValueError, OSError) as error:  # all files are written; the object expires by itself
            said = " ".join(str(error).split())[:200]
            logger.warning(
                f"the owner object of {self._folder} was not removed ({said}); it expires in {LEASE:.0f} seconds"
            )


def _end(code: int) -> None:
    """Ends the process at once, because another one may own the folder."""
    sys.stderr.flush()
    os._exit(code)


def _text(record: dict[str, Any]) -> bytes:
    return json.dumps(record | {"beat": time.time()}).encode()


def _beat(value: bytes) -> float:
    beat = parsed(value).get("beat")
    return float(beat) if isinstance(beat, int | float) else 0.0
