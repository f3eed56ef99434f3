"""The headline config and its larger sibling on three slices of TPUs, a pursuit on one; a row of results.jsonl each.

    pip install -e '.[tpu]'
    python experiments/plan/plan.py [--only v5p] [--experts 16384] [--mesh data=64,expert=1] [--config scale.yaml]
    python experiments/plan/plan.py --with kernels --with bfloat16      # scale.yaml at 16,384 experts, so changed
    python experiments/plan/plan.py --table      # writes the table of README.md from results.jsonl, compiles nothing

A program takes some minutes to compile; rows that exist already (slice, config, libtpu, commit) are not made again
unless a change is asked for.
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
SCALE, PURSUIT = "scale.yaml", "pursuit/scale.yaml"
CHANGES = {"kernels": ["sae.kernel=tpu", "sae.route.topk=tpu"], "bfloat16": ["precision=bfloat16"]}
TOKENS = 32_512  # per chip
SEQUENCES = 32  # of the harvest, per chip
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


def main() -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--only", help="slices whose name begins so")
    top.add_argument("--experts", type=int, choices=EXPERTS, help="this number of experts alone")
    top.add_argument("--mesh", action="append", default=[], help="of jhsae plan; repeated, these (default: its own)")
    top.add_argument("--config", choices=(SCALE, PURSUIT), help="this config alone")
    top.add_argument("--with", dest="changes", action="append", default=[], choices=CHANGES, help="may be repeated")
    top.add_argument("--table", action="store_true", help="only write the table")
    arguments = top.parse_args()
    for topology, config, experts in [] if arguments.table else cases(arguments):
        if code := plan(topology, config, experts, arguments.changes, arguments.mesh):
            return code
    PAGE.write_text(with_table(PAGE.read_text(), [*rows()]))
    return 0


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """What was asked for and has no row yet: a slice, a config and its number of experts, or of a pursuit's roots."""
    use_libtpu()
    done = {key(row) for row in rows()}
    every = [(topology, SCALE, experts) for topology in TOPOLOGIES for experts in EXPERTS]
    pursuit = ("v5p:4x4x4", PURSUIT, EXPERTS[0])
    for topology, config, experts in every[:: len(EXPERTS)] if arguments.changes else [*every, pursuit]:
        wanted = topology.startswith(arguments.only or "") and arguments.experts in (None, experts)
        wanted = wanted and arguments.config in (None, config)
        settings = cfg.load(Train, cfg.find(config), overrides(config, experts, arguments.changes))
        about = {"topology": topology, "config_hash": cfg.config_hash(settings), "libtpu": version("libtpu")}
        if wanted and (arguments.changes or key(about | cfg.provenance()) not in done):
            yield topology, config, experts


def overrides(config: str, experts: int, changes: list[str]) -> list[str]:
    """What gives a config this number of experts, and the changes."""
    size = [f"sae.experts={experts}"] if config == SCALE else []
    return [*size, *(word for name, words in CHANGES.items() if name in changes for word in words)]


def plan(topology: str, config: str, experts: int, changes: list[str], meshes: list[str]) -> int:
    """One row; the exit code of `jhsae plan` where it could not plan at all."""
    words = ["plan", config, "--topology", topology, "--tokens-per-chip", str(TOKENS)]
    words += overrides(config, experts, changes)
    words += [word for mesh in meshes for word in ("--mesh", mesh)]
    if (config, experts, changes) == (SCALE, EXPERTS[0], []):
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
    """The page with the table of the newest row of each slice, config and mesh."""
    newest = {(row["topology"], row["config"], row["experts"], changes_of(row), meshes_of(row)): row for row in found}
    columns = ["slice", "config", "experts", "mesh", "GiB a chip, of", "products", "HBM", "exchange", "step"]
    columns += ["tokens/s", "minutes", "input"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for topology, config, experts, changes, meshes in sorted(newest):
        best = newest[topology, config, experts, changes, meshes]
        name = f"{config}{', ' if changes else ''}{', '.join(changes)}"
        for row in best["meshes"]:
            lines.append(f"| {topology} | {name} | {experts:,} | {cells(row, best)} |")
    before, rest = text.split(BEGIN)
    table = "\n".join([*lines, "", *harvests(newest), *provenance(newest)])
    return f"{before}{BEGIN}{table}\n{END}{rest.split(END)[1]}"


def changes_of(row: dict) -> tuple[str, ...]:
    """The names of what was changed in the config of a row."""
    return tuple(name for name, words in CHANGES.items() if set(words) <= set(row["overrides"]))


def meshes_of(row: dict) -> tuple[tuple[int, int], ...]:
    """The meshes of a row with changes: each has a line. Of others the newest row alone is shown."""
    return tuple(tuple(one["mesh"].values()) for one in row["meshes"]) if changes_of(row) else ()


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
    for (topology, *_), row in sorted(newest.items()):
        if (harvest := row.get("harvest")) and (rate := harvest["tokens_per_second"]):
            yield (
                f"- harvest of Gemma-2-2B to layer 20 on {topology}, {SEQUENCES} sequences of 256 a chip: "
                f"{harvest['bytes_per_chip'] / 2**30:.2f} GiB a chip, {rate / 1e6:.1f} M tokens/s, "
                f"{harvest['days'] * 1440:.1f} minutes for {harvest['rows'] / 1e6:,.0f} M rows"
            )


def provenance(newest: dict) -> list[str]:
    """Which programs and compilers these numbers are of."""
    hashes = {
        f"{config}, {experts:,} experts{''.join(f', {change}' for change in changes)}: {row['config_hash']}"
        for (_, config, experts, changes, _), row in newest.items()
    }
    tools = {f"jax {row['versions']['jax']}, libtpu {row['libtpu']}, commit {row['commit']}" for row in newest.values()}
    return ["", f"Config {'; '.join(sorted(hashes))}. {'; '.join(sorted(tools))}."] if newest else []


if __name__ == "__main__":
    sys.exit(main())
