"""The words of ``jhsae bench``: flags of its four parts, and which module answers each. Imports no JAX."""

import argparse
import importlib
from pathlib import Path

STEP = (
    "Times our training step against the original's, interleaved in one process, after holding loss and gradients\n"
    "equal. Both train the same hierarchical SAE on the same batch; the original's step is written out in its own\n"
    "style (jhsae/bench/original.py). Exit code 1: they did not compute the same.\n\n"
    "example  jhsae bench step --embed 256 --experts 2048 --batch 4096 --json step.json"
)
OPS = (
    "Times every op against its alternatives on one shape, interleaved, after holding them equal.\n\n"
    "example  jhsae bench ops --embed 256 --experts 2048 --batch 4096 --only topk,encode_atoms"
)
LOADER = (
    "Measures how many rows per second the loader gives, beside the tokens per second that our step takes at the same\n"
    "batch, and both together: input starves the step where it is slower.\n\n"
    "example  jhsae bench loader stores/gemma-2-2b-l20 --experts 16384 --batch 4096"
)
RUN = (
    "Times a whole run, jhsae harvest then jhsae train, each in a process of its own: tokens per second of each and\n"
    "of both, the share of training that waits for input, CPU and memory. CONFIG.yaml is one of jhsae train (without\n"
    "it quickstart/scale.yaml); key=value overrides it, harvest.key=value the config of the harvest.\n\n"
    "example  jhsae bench run --rows 250000 --steps 1000 --json run.json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parts of ``jhsae bench`` and their flags."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    step = parts.add_parser("step", help="our training step against the original's", description=STEP)
    _shape(step)
    _build(step)
    step.add_argument(
        "--original-batch",
        type=int,
        metavar="N",
        help="tokens of the original's update, where it needs fewer (0: ours alone)",
    )
    step.add_argument("--variants", action="store_true", help="time our corrected step and our flat TopK SAEs too")
    ops = parts.add_parser("ops", help="every op against its alternatives", description=OPS)
    _shape(ops)
    ops.add_argument("--chunk", type=int, metavar="N", help="tokens at once, where a kernel can (default: its own)")
    ops.add_argument("--only", default="", metavar="A,B", help="these groups alone, e.g. topk,encode_atoms,gram")
    ops.add_argument("--without", default="", metavar="A,B", help="leave these alternatives out, e.g. scan,dense")
    loader = parts.add_parser("loader", help="the loader beside the step", description=LOADER)
    loader.add_argument("store", nargs="?", metavar="STORE", help="default: a temporary one of random rows")
    _shape(loader, embed=False)
    loader.add_argument("--embed", type=int, metavar="N", help="size of a vector; the store's own where one is given")
    _build(loader)
    for one in (step, ops, loader):
        _timing(one)
    whole = parts.add_parser("run", help="a whole run: harvest, then train", description=RUN)
    whole.add_argument("words", nargs="*", metavar="CONFIG.yaml key=value", help="a config of jhsae train, overrides")
    whole.add_argument("--harvest", default="harvest/embedded.yaml", metavar="CONFIG.yaml", help="(%(default)s)")
    whole.add_argument("--rows", type=int, default=100_000, metavar="N", help="activations to harvest (%(default)s)")
    whole.add_argument("--steps", type=int, default=300, metavar="N", help="updates of every stage (%(default)s)")
    whole.add_argument("--batch", type=int, metavar="N", help="tokens of one update (default: the config's)")
    whole.add_argument("--width", type=int, metavar="N", help="experts, or features of a flat SAE (the config's)")
    whole.add_argument("--work", metavar="FOLDER", help="keep the store and the run there (default: temporary)")
    _json(whole)


def run(arguments: argparse.Namespace) -> int:
    """Runs one part and returns the exit code."""
    return 0 if importlib.import_module(f"jhsae.bench.{arguments.part}").command(arguments) else 1


def _shape(parser: argparse.ArgumentParser, embed: bool = True) -> None:
    if embed:
        parser.add_argument("--embed", type=int, required=True, metavar="N", help="size of a vector")
    parser.add_argument("--experts", type=int, required=True, metavar="N", help="experts")
    parser.add_argument("--batch", type=int, required=True, metavar="N", help="tokens of one update")
    parser.add_argument("--sub", type=int, default=4, metavar="N", help="dimensions of an expert's subspace (4)")
    parser.add_argument("--atoms", type=int, default=16, metavar="N", help="atoms of an expert (16)")
    parser.add_argument("--k", type=int, default=32, metavar="N", help="experts per token (32)")


def _build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", help="how our experts are computed (default: the SAE's own)")
    parser.add_argument("--chunk", type=int, metavar="N", help="tokens at once (default: the SAE's own)")
    parser.add_argument("--topk", help="how our top-k is computed (default: the sparsifier's own)")


def _timing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="interleaved rounds at most (9)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="no further round begins after so long, from 3 on (120)",
    )
    _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
