"""A folder that appears complete or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jhsae.errors import UserError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder` to write into, which takes its name when the block ends without an error.

    `UserError` when `folder` exists: nothing is overwritten.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; write the path of a folder that does not")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)
