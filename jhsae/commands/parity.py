"""``jhsae parity FILE.npz``: recomputes a file of golden numbers and prints one row per quantity. Imports no JAX."""

import argparse
import importlib
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file and the flag of ``jhsae parity``."""
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="the golden file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compares and returns the exit code: 1 where a row failed."""
    return 0 if importlib.import_module("jhsae.parity.compare").run(arguments.file, arguments.json) else 1
