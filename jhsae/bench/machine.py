"""What a benchmark writes down, and about the machine: processors, load, commit and versions."""

import os
from pathlib import Path
from typing import Any

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.folders import write_whole


def load_average() -> list[float]:
    """Programs that ran or waited, over 1, 5 and 15 minutes; above the number of processors nothing is quiet."""
    return [round(number, 2) for number in os.getloadavg()]


def machine() -> dict[str, Any]:
    """Processors, commit, versions and devices."""
    return {"cpu_count": os.cpu_count(), **cfg.provenance()}


def check_writable(path: Path | None) -> None:
    """Raises `UserError`, before any measurement, where no result could be written."""
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--json is {path}, but there is no folder {path.parent}; make it, or write another path")
    if path is not None and path.is_dir():
        raise UserError(f"--json is {path}, which is a folder; write the path of a file in it")


def write(result: dict[str, Any], path: Path | None) -> None:
    """Writes a result as JSON where a path is given."""
    if path is not None:
        write_whole(path, to_json(result, indent=2) + "\n")
