"""The headline config and its larger sibling on three slices of TPUs, planned; one row of results.jsonl each.

    pip install -e '.[tpu]'
    python experiments/plan/plan.py [--only v5p] [--experts 16384] [--mesh data=64,expert=1]
    python experiments/plan/plan.py --table      # writes the table of README.md from results.jsonl, compiles nothing

A program takes some minutes to compile; rows that exist already (slice, config, libtpu, commit) are not made again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from jhsae import config as cfg
from jhsae.__main__ import main as jhsae
from jhsae.files.bounded import to_json
from jhsae.files.folders import append_line
from jhsae.plan.topology import use_libtpu
from jhsae.training.config import Train

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
TOPOLOGIES = {"v5e:16x16": 256, "v5p:4x4x4": 64, "v6e:16x16": 256}
EXPERTS = (16_384, 65_536)
TOKENS = 32_512  # per chip
SEQUENCES = 32  # of the harvest, per chip
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


def main() -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--only", help="slices whose name begins so")
    top.add_argument("--experts", type=int, choices=EXPERTS, help="this number of experts alone")
    top.add_argument("--mesh", action="append", default=[], help="of jhsae plan; repeated, these (default: its own)")
    top.add_argument("--table", action="store_true", help="only write the table")
    arguments = top.parse_args()
    for topology, experts in [] if arguments.table else cases(arguments):
        if code := plan(topology, experts, arguments.mesh):
            return code
    PAGE.write_text(with_table(PAGE.read_text(), [*rows()]))
    return 0


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """What was asked for and has no row yet."""
    use_libtpu()
    done = {key(row) for row in rows()}
    for topology in TOPOLOGIES:
        for experts in EXPERTS:
            wanted = topology.startswith(arguments.only or "") and arguments.experts in (None, experts)
            config = cfg.load(Train, cfg.find("scale.yaml"), [f"sae.experts={experts}"])
            about = {"topology": topology, "config_hash": cfg.config_hash(config), "libtpu": version("libtpu")}
            if wanted and key(about | cfg.provenance()) not in done:
                yield topology, experts


def plan(topology: str, experts: int, meshes: list[str]) -> int:
    """One row; the exit code of `jhsae plan` where it could not plan at all."""
    words = ["plan", "scale.yaml", "--topology", topology, "--tokens-per-chip", str(TOKENS), f"sae.experts={experts}"]
    words += [word for mesh in meshes for word in ("--mesh", mesh)]
    if experts == EXPERTS[0]:
        words += ["--harvest", "harvest/gemma2_2b.yaml", f"harvest.lm.path={HERE / 'gemma-2-2b'}"]
        words += [f"harvest.batch={SEQUENCES * TOPOLOGIES[topology]}"]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        if (code := jhsae([*words, "--json", str(file)])) > 1:
            return code
        row = json.loads(file.read_text()) | {"experts": experts, "libtpu": version("libtpu")}
    append_line(RESULTS, to_json(row))
    return 0


def rows() -> Iterator[dict]:
    if RESULTS.exists():
        yield from (json.loads(line) for line in RESULTS.read_text().splitlines())


def key(row: dict) -> tuple:
    return tuple(row[name] for name in ("topology", "config_hash", "libtpu", "commit"))


def with_table(text: str, found: list[dict]) -> str:
    """The page with the table of the newest row of each slice and number of experts."""
    newest = {(row["topology"], row["experts"]): row for row in found}
    head = "| slice | experts | mesh | GiB a chip, of | products | HBM | exchange | step | tokens/s | minutes | input |"
    lines = [head, "|---" * 11 + "|"]
    for topology, experts in sorted(newest):
        best = newest[topology, experts]
        for row in best["meshes"]:
            lines.append(f"| {topology} | {experts:,} | {cells(row, best)} |")
    before, rest = text.split(BEGIN)
    table = "\n".join([*lines, "", *harvests(newest), *provenance(newest)])
    return f"{before}{BEGIN}{table}\n{END}{rest.split(END)[1]}"


def cells(row: dict, best: dict) -> str:
    """The cells of one mesh; minutes and input of the recommended one alone."""
    chosen = row["mesh"] == best["mesh"]
    mesh = f"data {row['mesh']['data']} x expert {row['mesh']['expert']}"
    memory = f"{row['bytes_per_chip'] / 2**30:.2f}, {row['hbm_bytes'] / 2**30:.2f}"
    if row["times"] is None:
        return " | ".join([mesh, f"{memory}: does not fit", *["-"] * 7])
    ms = [f"{1e3 * row['times'][name]:.1f} ms" for name in ("arithmetic", "memory", "exchange")]
    run = [f"{1440 * best['days']:.1f}", f"{best['input_bytes_per_second'] / 1e9:.1f} GB/s"] if chosen else ["-", "-"]
    step = [f"{1e3 * row['step_seconds']:.1f} ms", f"{row['tokens_per_second'] / 1e6:.1f} M"]
    return " | ".join([f"**{mesh}**" if chosen else mesh, memory, *ms, *step, *run])


def harvests(newest: dict) -> Iterator[str]:
    for (topology, _), row in sorted(newest.items()):
        if (harvest := row.get("harvest")) and (rate := harvest["tokens_per_second"]):
            yield (
                f"- harvest of Gemma-2-2B to layer 20 on {topology}, {SEQUENCES} sequences of 256 a chip: "
                f"{harvest['bytes_per_chip'] / 2**30:.2f} GiB a chip, {rate / 1e6:.1f} M tokens/s, "
                f"{harvest['days'] * 1440:.1f} minutes for {harvest['rows'] / 1e6:,.0f} M rows"
            )


def provenance(newest: dict) -> list[str]:
    """Which programs and compilers these numbers are of."""
    hashes = {f"{experts:,} experts: {row['config_hash']}" for (_, experts), row in newest.items()}
    tools = {f"jax {row['versions']['jax']}, libtpu {row['libtpu']}, commit {row['commit']}" for row in newest.values()}
    return ["", f"Config {'; '.join(sorted(hashes))}. {'; '.join(sorted(tools))}."] if newest else []


if __name__ == "__main__":
    sys.exit(main())
