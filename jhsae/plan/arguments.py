"""The words of ``jhsae plan``. Imports no JAX."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from jhsae.errors import UserError

EXAMPLE = "jhsae plan scale.yaml --topology v5p:4x4x4 --tokens-per-chip 32512 --json plan.json"
PLAN = (
    "Compiles the training step of a config for a slice of TPUs, without a TPU, and says per chip: memory and whether\n"
    "it fits, FLOPs, bytes of each collective, the step time by a roofline and what bounds it; then days and input\n"
    "bandwidth of the whole run. Compares meshes of data x expert and recommends one. Exit code 1: none fits.\n\n"
    "reads    a config of jhsae train; no store, no teacher; the TPU compiler (pip install 'jhsae[tpu]')\n"
    "writes   a page on the screen and, with --json, the same numbers as JSON\n"
    f"example  {EXAMPLE}"
)


def add(verbs: Any) -> None:
    """Adds ``plan`` to the verbs of a command line."""
    plan = verbs.add_parser(
        "plan", help="memory, traffic and time of a run on TPUs that are not here", description=PLAN
    )
    plan.add_argument(
        "words", nargs="*", metavar="CONFIG.yaml key=value", help="a config of jhsae train, then overrides"
    )
    plan.add_argument("--topology", metavar="CHIP:SHAPE", help="v4, v5e, v5p or v6e, as v5p:4x4x4; or cpu:8")
    plan.add_argument(
        "--mesh", action="append", metavar="data=N,expert=N", help="this mesh alone; repeated, these (default: several)"
    )
    plan.add_argument("--tokens-per-chip", type=int, metavar="N", help="the batch is N x chips, not data.batch")
    plan.add_argument("--stage", metavar="NAME", help="the stage whose step is planned (default: the longest)")
    plan.add_argument("--harvest", metavar="CONFIG.yaml", help="plan this harvest too; harvest.KEY=VALUE changes a key")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")


def run(arguments: argparse.Namespace) -> int:
    """Plans and returns the exit code. Raises `UserError` where a word is missing."""
    if not arguments.words or not arguments.topology:
        missing = "--topology" if arguments.words else "config file"
        raise UserError(f"plan was given no {missing}, expected one: {EXAMPLE}")
    if arguments.tokens_per_chip is not None and arguments.tokens_per_chip < 1:
        raise UserError(f"--tokens-per-chip is {arguments.tokens_per_chip}, expected at least 1")
    return 0 if importlib.import_module("jhsae.plan.command").command(arguments) else 1
