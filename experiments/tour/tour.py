"""Options, stores, figures and results rows that the scripts of the tour share."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jhsae import config
from jhsae.commands import harvest

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's, which colour-blind readers can tell apart


def options(about: str) -> argparse.Namespace:
    """The options of a script: where runs and figures go, and whether it only shows that it works."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tour"), help="folder of stores and runs, reused")
    parser.add_argument("--figures", type=Path, default=HERE, help="folder of the figure and of results.jsonl")
    parser.add_argument("--tiny", action="store_true", help="a few steps on few rows: does it work?")
    return parser.parse_args()


def harvested(folder: Path, rows: int) -> tuple[Path, Path]:
    """A store of `rows` rows of layer 2 of the embedded model and one of a quarter as many held out; reused."""
    found = []
    for split, count in (("embedded", rows), ("embedded_heldout", rows // 4)):
        out = folder / f"{split}-{count}"
        if not (out / "manifest.json").exists():
            words = [f"out={out}", f"rows={count}"]
            harvest.run(config.load(harvest.Harvest, config.find(f"harvest/{split}.yaml"), words))
        found.append(out)
    return found[0], found[1]


def panels(width: float, count: int) -> tuple[Figure, list[Axes]]:
    """A white figure with `count` panels side by side."""
    figure = Figure(figsize=(width, 3.2), facecolor="white", layout="constrained")
    axes = [figure.add_subplot(1, count, place + 1) for place in range(count)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def finish(name: str, figure: Figure, config_hash: Any, numbers: dict[str, Any], folder: Path) -> None:
    """Writes NAME.png, and the row `name` of results.jsonl with hash, commit and versions; prints the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
    file = folder / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    row = {"name": name, "config_hash": config_hash, **config.provenance(), "numbers": numbers}
    rows = sorted([*(one for one in rows if one["name"] != name), row], key=lambda one: one["name"])
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    print(json.dumps(numbers, indent=2))
    print(f"made {folder / f'{name}.png'} and the row {name} of {file}")
