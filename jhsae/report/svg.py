"""The look of the figures, and a figure as inline SVG: text stays text, nothing is loaded, same numbers, same bytes.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; line styles tell the runs apart in print.
In the SVG a colour is a variable of style.css with the colour as its fallback, so that a dark page recolours the
figures. Labels in a figure are ASCII, because its fonts are the reader's.
"""

import hashlib
import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":")
INK, BACK, SOFT, RULE, GRID = "#000000", "#ffffff", "#666666", "#bbbbbb", "#e3e3e3"
VARIABLES = {colour.lower(): f"--run-{place}" for place, colour in enumerate(COLOURS)} | {
    INK: "--ink",
    BACK: "--back",
    SOFT: "--soft",
    RULE: "--rule",
    GRID: "--grid",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}
MOST_LETTERS = 64  # of a label


def plain(text: str, most: int = MOST_LETTERS) -> str:
    """`text` without what a reader's font may lack, cut where it would leave no room for the figure.

    It is never hidden from a legend by a leading underscore.
    """
    text = text if len(text) <= most else text[: most - 3] + "..."
    kept = "".join(c if " " <= c <= "~" else "?" for c in text)
    return f" {kept}" if kept.startswith("_") else kept


def svg(figure: Figure, name: str) -> str:
    """The figure as an element for HTML: no prologue, no metadata, ids that no other figure has."""
    text, name = io.StringIO(), name.encode("utf-8", "backslashreplace").decode()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    prefix = f"f{hashlib.sha256(name.encode()).hexdigest()[:8]}-"
    drawn = text.getvalue()[text.getvalue().index("<svg") :]
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<[a-zA-Z][^>]*>", lambda tag: _tag(tag[0], prefix), drawn)
    return drawn.replace("<svg ", '<svg aria-hidden="true" ', 1)


def _tag(tag: str, prefix: str) -> str:
    """A tag without name spaces, its ids told apart from those of other figures. Text between tags stays as it is."""
    tag = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", tag)
    tag = re.sub(r"\b(fill|stroke): (#[0-9a-f]{6})", lambda found: f"{found[1]}: {_variable(found[2])}", tag)
    return re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\1{prefix}", tag)


def _variable(colour: str) -> str:
    """The variable of a colour, and the colour where a page does not define it."""
    return f"var({VARIABLES[colour]}, {colour})" if colour in VARIABLES else colour
