"""A run folder, local or in a bucket: ``gs://`` and ``s3://`` through etils' epath, which Orbax uses as well.

``pathlib`` would write ``gs:/bucket``. A bucket needs ``pip install gcsfs`` or ``s3fs``.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from etils import epath

from jhsae.errors import UserError
from jhsae.outcome import no_room

Folder: TypeAlias = Path | epath.Path
PARTIAL = ".partial"


def is_bucket(path: str | Folder) -> bool:
    """True for ``gs://bucket/run`` and the like."""
    return "://" in str(path)


def open_folder(path: str | Folder) -> Folder:
    """The path as an object with the methods of `pathlib.Path`."""
    return epath.Path(path) if is_bucket(path) else Path(path)


def make_folder(folder: Folder) -> None:
    """Makes a folder and those above it, where they are not there yet. Raises `UserError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if no_room(error):
            raise
        raise UserError(f"{folder} cannot be made ({error.strerror or error}); write another out=...") from error


@contextmanager
def local_copy(path: Folder) -> Iterator[Path]:
    """A local file with what `path` holds, for readers that know no buckets; `path` itself where it is local."""
    if not is_bucket(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


def write_whole(path: Folder, text: str) -> None:
    """Writes a file that a kill leaves as it was or as it will be, never between; its name until then is PARTIAL."""
    if is_bucket(path):  # where a file appears when it is complete
        path.write_text(text)
        return
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
