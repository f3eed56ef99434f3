"""For tests that change a saved folder: its checksums again, as if it had been written so."""

import hashlib
from pathlib import Path

from jhsae.files.checksums import NAME


def sealed(folder: Path) -> Path:
    """Writes ``SHA256SUMS`` over the files that are there now."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != NAME)
    lines = (f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(folder).as_posix()}\n" for f in files)
    (folder / NAME).write_text("".join(lines))
    return folder
