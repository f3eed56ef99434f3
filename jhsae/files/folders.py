"""Files and folders, local or in a bucket: ``gs://`` and ``s3://`` through etils' epath, which Orbax uses as well.

``pathlib`` would write ``gs:/bucket``. A bucket needs ``pip install gcsfs`` or ``s3fs``. `write_whole` writes a file
and `whole_folder` a folder atomically: under the name `PARTIAL`, flushed to the disk (fsync) and renamed, so that after
a kill or a power cut it is complete or absent.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from etils import epath

from jhsae.errors import NoRoomError, UserError, no_room

Folder: TypeAlias = Path | epath.Path
PARTIAL = ".partial"
BUCKETS = ("gs://", "s3://")


def is_bucket(path: str | Folder) -> bool:
    """True for ``gs://bucket/run`` and the like."""
    return "://" in str(path)


def open_folder(path: str | Folder) -> Folder:
    """The path as an object with the methods of `pathlib.Path`. `UserError`: a URL of no bucket, a ``~``."""
    if not is_bucket(path):
        return local_folder(path)
    if not str(path).startswith(BUCKETS):
        raise UserError(f"{path} is no folder that can be opened, expected a path or one of {', '.join(BUCKETS)}")
    return epath.Path(path)


def local_folder(path: str | Folder, word: str = "out") -> Path:
    """A path of this machine. `UserError`: a URL, of which pathlib makes a path, or a ``~`` that no shell replaced."""
    if is_bucket(path):
        raise UserError(f"{word} is {path}, expected a path of this machine; write a local path and copy it from there")
    if str(path).split("/")[0].startswith("~"):
        raise UserError(f"{path} begins with ~, which stands for no folder here; write the path out: $HOME/...")
    return Path(path)


def make_folder(folder: Folder) -> None:
    """Makes a folder and those above it, where they are not there yet. Raises `UserError` where that cannot be."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def local_copy(path: Folder) -> Iterator[Path]:
    """A local copy of `path`, for readers without bucket support; `path` itself where it is local."""
    if not is_bucket(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


def refuse_existing(path: Folder, word: str = "out") -> None:
    """Raises `UserError` where something has this name already, a link to nothing included."""
    if path.exists() or (not is_bucket(path) and os.path.lexists(path)):
        raise UserError(f"{path} exists already and is never overwritten; write another {word}=...")


@contextmanager
def writing(path: Folder) -> Iterator[None]:
    """Turns errors of writing `path` (a full disk, no permission) into a `UserError`."""
    try:
        yield
    except OSError as error:
        at = f": {error.filename}" if error.filename not in (None, path, str(path)) else ""
        kind = NoRoomError if no_room(error) else UserError
        raise kind(
            f"{path} cannot be written ({error.strerror or error}{at}); make room or give the right to write there, or "
            "write another path"
        ) from error


def write_whole(path: Folder, content: str | bytes) -> None:
    """Writes a file atomically: the old content or the new, never a part (temporary file `PARTIAL`, fsync, rename).

    Raises:
        UserError: the disk is full, or nothing may be written there.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        if is_bucket(path):  # where a file appears when it is complete
            path.write_bytes(data)
            return
        partial = path.with_name(path.name + PARTIAL)
        Path(partial).unlink(missing_ok=True)  # an existing link would be followed
        write_synced(partial, data, "xb")
        rename_synced(Path(partial), Path(path))


@contextmanager
def whole_folder(folder: Folder) -> Iterator[Folder]:
    """A folder to write into, which takes the name `folder` when the block ends without an error.

    It is written under the name `PARTIAL`; what a killed process left there is removed. In a bucket, where no folder
    can be renamed, the files appear one by one. It does not keep other processes away: see `jhsae.files.lock.owned`.

    Raises:
        UserError: `folder` exists, the disk is full, or nothing may be written there.
    """
    with writing(folder):
        if not is_bucket(folder):
            refuse_existing(folder)
        partial = folder if is_bucket(folder) else folder.with_name(folder.name + PARTIAL)
        _remove(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            _remove(partial)
            raise
        if not is_bucket(folder):
            for path in (*Path(partial).rglob("*"), Path(partial)):
                sync(path)
            rename_synced(Path(partial), Path(folder))


def _remove(partial: Folder) -> None:
    if isinstance(partial, Path) and not is_bucket(partial):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
    elif partial.exists():
        epath.Path(partial).rmtree()


def append_line(path: Folder, line: str) -> None:
    """Appends one line and syncs it; a truncated last line is removed first.

    A hard link is replaced by a copy, so that nothing outside the folder changes.

    Raises:
        UserError: the disk is full, nothing may be written there, or `path` is a link or no file.
    """
    data = (line + "\n").encode()
    with writing(path):
        if is_bucket(path):  # where nothing can be appended
            whole = path.read_bytes() if path.exists() else b""
            path.write_bytes(whole[: whole.rfind(b"\n") + 1] + data)
            return
        _refuse_link(Path(path))
        if path.exists() and os.stat(path).st_nlink > 1:
            whole = path.read_bytes()
            write_whole(path, whole[: whole.rfind(b"\n") + 1] + data)
            return
        mend(Path(path))
        write_synced(path, data, "ab")


def _refuse_link(path: Path) -> None:
    """Raises `UserError` where appending to `path` would write to another place, or wait for a reader for ever."""
    if path.is_symlink():
        raise UserError(f"{path} is a link to {os.readlink(path)}, expected a file of its folder; put a copy there")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder, a FIFO or a device, expected a file; remove it")


def mend(path: Path) -> None:
    """Removes a truncated last line."""
    if path.exists():
        with path.open("r+b") as file:
            end = size = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                if (found := file.read(end - start).rfind(b"\n")) >= 0:
                    end = start + found + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
                os.fsync(file.fileno())


def write_synced(path: Folder, data: bytes, mode: str = "wb") -> None:
    """Writes a file and syncs it. In mode ``ab`` the bytes are appended in one write."""
    with path.open(mode) as file:
        file.write(data)
        file.flush()
        if not is_bucket(path):
            os.fsync(file.fileno())


def rename_synced(partial: Path, final: Path) -> None:
    """Renames a synced file or folder and syncs its parent."""
    os.replace(partial, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Syncs a file, or the entries of a folder; Windows has no such call."""
    if os.name == "nt":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
