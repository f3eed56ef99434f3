"""``jhsae plan``: what a run needs and how long it takes, before anything is rented. Imports no JAX.

The training step is compiled for a slice of TPUs, without a TPU. Per chip: memory and whether it fits, FLOPs, bytes of
each collective, the step time by a roofline and what bounds it; then days and input bandwidth of the whole run.
"""

import argparse
import importlib
from pathlib import Path

from jhsae.commands.table import VERBS
from jhsae.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words and flags of ``jhsae plan``."""
    parser.epilog = (
        "Compiles the training step of a config for a slice of TPUs and says, per chip: memory and whether it fits,\n"
        "FLOPs, bytes of each collective, the step time by a roofline and what bounds it; then days and input\n"
        "bandwidth of the whole run. Compares meshes of data x expert and recommends one. Exit code 1: none fits."
    )
    parser.add_argument(
        "words", nargs="*", metavar="CONFIG.yaml key=value", help="a config of jhsae train, then overrides"
    )
    parser.add_argument("--topology", metavar="CHIP:SHAPE", help="v4, v5e, v5p or v6e, as v5p:4x4x4; or cpu:8")
    parser.add_argument(
        "--mesh", action="append", metavar="data=N,expert=N", help="this mesh alone; repeated, these (default: several)"
    )
    parser.add_argument("--tokens-per-chip", type=int, metavar="N", help="the batch is N x chips, not data.batch")
    parser.add_argument("--stage", metavar="NAME", help="the stage whose step is planned (default: the longest)")
    parser.add_argument("--harvest", metavar="CONFIG.yaml", help="plan this harvest too; harvest.KEY=VALUE changes it")
    parser.add_argument(
        "--traffic", action="store_true", help="list the HBM traffic of the step by operation and line of Python too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")


def run(arguments: argparse.Namespace) -> int:
    """Plans and returns the exit code. Raises `UserError` where a word is missing."""
    if not arguments.words or not arguments.topology:
        missing = "--topology" if arguments.words else "config file"
        raise UserError(f"plan was given no {missing}, expected one: {VERBS['plan'].example}")
    if arguments.tokens_per_chip is not None and arguments.tokens_per_chip < 1:
        raise UserError(f"--tokens-per-chip is {arguments.tokens_per_chip}, expected at least 1")
    return 0 if importlib.import_module("jhsae.plan.compare").command(arguments) else 1
