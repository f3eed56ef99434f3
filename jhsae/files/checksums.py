"""``SHA256SUMS``: the sha256 of every file of a saved folder, in the format of the program `sha256sum`.

    cd runs/scale/sae && sha256sum -c SHA256SUMS

Hashes are computed from the bytes as they are written; files are compared with them before they are used. They detect
damage, not tampering.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from jhsae.errors import UserError, sentence
from jhsae.files.bounded import JSON_BYTES, MIB, inside, read_bytes, regular_file, size_of
from jhsae.files.folders import Folder, is_bucket, whole_folder
from jhsae.files.lock import is_owned, owned
from jhsae.files.tensor_files import check_written, tensor_header

logger = logging.getLogger(__name__)
NAME = "SHA256SUMS"
LIMIT = 64 * MIB
NOTICES = 10
LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")
AGAIN = "copy or make it again"


class NewFolder:
    """A folder being written. Files not written by `write` are hashed when the folder is complete."""

    def __init__(self, path: Folder, last: str | None = None, within: str = "."):
        """`last` and `within` as in `new_folder`."""
        self.path, self._last, self._within = path, last, PurePosixPath(within)
        self._sums: dict[str, str] = {}
        self._kept: bytes | None = None

    def write(self, name: str, content: str | bytes) -> None:
        """Writes the file `name`, a relative path, and keeps the hash of its bytes."""
        data = content.encode() if isinstance(content, str) else content
        self._sums[name] = hashlib.sha256(data).hexdigest()
        if name == self._last:
            self._kept = data
            return
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(data)

    def seal(self) -> None:
        """Writes ``SHA256SUMS`` and then the last file."""
        if not is_bucket(self.path):
            for file in Path(self.path).rglob("*"):
                name = file.relative_to(Path(self.path)).as_posix()
                if file.is_file() and name not in self._sums:
                    self._sums[name] = hash_file(file)
        sums = {PurePosixPath(name).relative_to(self._within).as_posix(): known for name, known in self._sums.items()}
        (self.path / self._within / NAME).write_bytes(to_text(sums).encode())
        if self._last is not None and self._kept is not None:
            (self.path / self._last).write_bytes(self._kept)


@contextmanager
def new_folder(folder: Folder, last: str | None = None, within: str = ".") -> Iterator[NewFolder]:
    """A `whole_folder` with ``SHA256SUMS``, owned by this process while it is written.

    Args:
        folder: the folder to make.
        last: the file that in a bucket is written after ``SHA256SUMS``.
        within: the folder in `folder` that holds ``SHA256SUMS`` and all files: for readers that take every name at the
            top for something of theirs.

    Raises:
        UserError: as of `whole_folder`, or another process writes it.
    """
    with nullcontext() if is_owned(folder.parent) else owned(folder), whole_folder(folder) as partial:
        new = NewFolder(partial, last, within)
        yield new
        new.seal()


@dataclass(frozen=True)
class Sums:
    """The content of ``SHA256SUMS``. `known` is None without the file: an older version wrote the folder."""

    folder: Folder
    known: dict[str, str] | None

    @classmethod
    def of(cls, folder: Folder) -> "Sums":
        """Reads the file. `UserError`: an invalid line, a repeated name, a name outside the folder."""
        path = folder / NAME
        if not path.exists():
            return cls(folder, None)
        return cls(folder, parse(read_bytes(path, LIMIT), path))

    def required(self, by_format: bool) -> None:
        """Reports a missing file. `UserError` where the format of the folder requires it."""
        if self.known is None and by_format:
            raise UserError(f"{self.folder} has no {NAME}, which belongs to it; {AGAIN}")
        if self.known is None:
            logger.warning(
                f"{self.folder} carries no checksums: an older version wrote it, and damage may go unnoticed"
            )

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The verified bytes of a file.

        Raises:
            UserError: it is missing, larger than `limit`, not listed or altered.
        """
        self._listed(name)
        path = regular_file(self.folder / name)
        data = read_bytes(path, size_of(path) if limit is None else limit)
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def check(self, names: Iterable[str]) -> None:
        """Compares files without keeping them in memory, once their sizes are plausible. `UserError` as of `read`."""
        for name in names:
            self._listed(name)
            _check_size(self.folder / name)
            self._compare(name, "" if self.known is None else hash_file(self.folder / name))

    def notice(self, read: Iterable[str]) -> None:
        """Reports changed files that are not read, such as a README: they may have been edited.

        Files larger than `LIMIT` are not hashed.
        """
        changed = (name for name in sorted((self.known or {}).keys() - set(read)) if self._is_changed(name))
        for name in islice(changed, NOTICES):
            text = f"{self.folder / name} is not the file that was written (its checksum in {NAME} differs)"
            logger.warning(sentence(f"{text}; it was not used"))
        if next(changed, None) is not None:
            logger.warning(f"{self.folder} has more such files")

    def _is_changed(self, name: str) -> bool:
        path = self.folder / name
        if path.is_file() and size_of(path) > LIMIT:
            return False
        return not path.is_file() or hash_file(path) != (self.known or {})[name]

    def _listed(self, name: str) -> None:
        if self.known is not None and name not in self.known:
            raise UserError(f"{self.folder / NAME} does not list {name}, expected its sha256; {AGAIN}")

    def _compare(self, name: str, found: str) -> None:
        if self.known is not None and self.known[name] != found:
            raise UserError(
                f"{self.folder / name} is damaged or was changed: its checksum is not the one in {NAME}; {AGAIN}"
            )


def verify(folder: Folder) -> None:
    """Verifies every listed file of a folder except READMEs. `UserError` where one differs.

    A folder without ``SHA256SUMS``, from another library or an older version, is not checked.
    """
    sums = Sums.of(folder)
    if sums.known is not None:
        cards = {name for name in sums.known if PurePosixPath(name).suffix == ".md"}
        sums.check(sorted(sums.known.keys() - cards))
        sums.notice(sums.known.keys() - cards)


def parse(text: bytes, where: Folder | str) -> dict[str, str]:
    """File name -> sha256 of the lines of a ``SHA256SUMS``."""
    found: dict[str, str] = {}
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no text; {AGAIN}") from error
    if lines.pop():
        raise UserError(f"{where} was cut short: its last line has no end; {AGAIN}")
    for number, line in enumerate(lines, 1):
        if (match := LINE.fullmatch(line)) is None:
            raise UserError(f"{where}, line {number}: got {line[:80]!r}, expected a sha256 and a file; {AGAIN}")
        inside(str(where).rpartition("/")[0] or ".", match[2], where)
        name = PurePosixPath(match[2]).as_posix()
        if name in found:
            raise UserError(f"{where}, line {number}: {name} stands there twice; {AGAIN}")
        found[name] = match[1]
    return found


def to_text(sums: dict[str, str]) -> str:
    """The content of ``SHA256SUMS``."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def _check_size(path: Folder) -> None:
    """Raises `UserError` for a wrong size or header, before any bytes are hashed."""
    suffix = PurePosixPath(path).suffix
    if suffix == ".safetensors":
        tensor_header(path)
    elif suffix == ".json" and (size := size_of(path)) > JSON_BYTES:
        raise UserError(f"{path} has {size:,} bytes, expected at most {JSON_BYTES:,}; {AGAIN}")
    else:
        check_written(path)


def hash_file(path: Folder) -> str:
    """The sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    try:
        with regular_file(path).open("rb") as file:
            while piece := file.read(4 * MIB):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()
