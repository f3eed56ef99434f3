"""Weak scaling: the work of one device as their number grows. Compiled for 1 to 8 simulated CPU devices.

    python experiments/scaling/weak.py          # writes results.jsonl and the table of README.md; some minutes

Tokens per device stay the same. On the axis ``data`` all devices have all experts; on ``expert`` the experts per
device stay the same too, so that each axis grows in the way it is meant to. Nothing runs: FLOPs of products and bytes
to and from memory are counted in the compiled program, loops by their trips (`jhsae.plan.cost`).
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from jhsae.__main__ import main as jhsae

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
TOKENS, EMBED, EXPERTS = 4096, 256, 2048
CONFIGS = {"H-SAE": "scale.yaml", "TopK": "flat/topk.yaml", "BatchTopK": "flat/batchtopk.yaml"}
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


def main() -> int:
    with RESULTS.open("w") as results:
        for row in rows():
            results.write(json.dumps(row) + "\n")
            results.flush()
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table(found)}{END}{rest.split(END)[1]}")
    return 0


def rows() -> Iterator[dict]:
    for name, config in CONFIGS.items():
        for axis in ("data", "expert"):
            for devices in (1, 2, 4, 8):
                if devices > 1 or axis == "data":
                    yield {"sae": name, "axis": axis, "devices": devices} | planned(config, axis, devices)


def planned(config: str, axis: str, devices: int) -> dict:
    """The numbers of one device."""
    features = EXPERTS * (devices if axis == "expert" else 1)
    sizes = f"sae.experts={features}" if config == "scale.yaml" else f"sae.features={features}"
    mesh = f"data={devices},expert=1" if axis == "data" else f"data=1,expert={devices}"
    # with the experts in as many parts, a device keeps its products when every part has the tokens of one device
    tokens = TOKENS if axis == "data" else TOKENS // devices
    words = ["plan", config, f"sae.embed={EMBED}", sizes, "--topology", f"cpu:{devices}", "--mesh", mesh]
    words += ["--tokens-per-chip", str(tokens)]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        if code := jhsae([*words, "--json", str(file)]):
            sys.exit(code)
        row = json.loads(file.read_text())
    sent = sum(c["sent_bytes"] for c in row["collectives"])
    kept = ("config_hash", "commit", "flops", "hbm_traffic", "bytes_per_chip", "compiler")
    return {key: row[key] for key in kept} | {"tokens": row["tokens_per_step"], "sent_bytes": sent}


def table(found: list[dict]) -> str:
    head = "| SAE | axis | devices | tokens | experts, features | GFLOP | change | GB moved | change | MB sent | MiB |"
    lines = [head, "|---" * 11 + "|"]
    for name in CONFIGS:
        one = next(row for row in found if row["sae"] == name and row["devices"] == 1)
        for row in (row for row in found if row["sae"] == name):
            size = EXPERTS * (row["devices"] if row["axis"] == "expert" else 1)
            cells = [name, row["axis"] if row["devices"] > 1 else "", row["devices"], f"{row['tokens']:,}", f"{size:,}"]
            cells += [f"{row['flops'] / 1e9:.2f}", change(row["flops"], one["flops"])]
            cells += [f"{row['hbm_traffic'] / 1e9:.2f}", change(row["hbm_traffic"], one["hbm_traffic"])]
            cells += [f"{row['sent_bytes'] / 1e6:.1f}", f"{row['bytes_per_chip'] / 2**20:.0f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", f"Commit {found[0]['commit']}.", ""])


def change(now: float, before: float) -> str:
    return f"{100 * (now / before - 1):+.1f} %"


if __name__ == "__main__":
    sys.exit(main())
