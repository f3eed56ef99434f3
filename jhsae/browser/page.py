"""The page: data, style and script in one HTML file that opens from disk and loads nothing.

Data that is large is embedded as gzip in base64, which browsers unpack by themselves (`DecompressionStream`). Nothing
from the data reaches the page as markup: the template escapes, the script sets text alone, and a content security
policy forbids every request and every script but the page's own.
"""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jhsae.browser.tables import MOST_BY_MEAN, MOST_BY_SHARE
from jhsae.files.escaping import script_hash

MARKER = "jhsae-browser"
FOLDER = Path(__file__).parent
SCRIPTS = ("dom.js", "search.js", "list.js", "figures.js", "card.js", "app.js")
PLAIN_BYTES = 200_000


def render(data: dict[str, Any], about: dict[str, Any]) -> str:
    """The page as HTML.

    Args:
        data: what `gather` returned.
        about: the values of the template's variables in heading and footer, by name.
    """
    kind, text = embedded(data)
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = '"use strict";\n' + "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
    return environment.get_template("template.html.jinja").render(
        about,
        script_hash=script_hash(script),
        marker=MARKER,
        by_mean=MOST_BY_MEAN,
        by_share=MOST_BY_SHARE,
        style=Markup((FOLDER / "style.css").read_text()),
        script=Markup(script),
        kind=kind,
        data=Markup(text),
    )


def embedded(data: dict[str, Any]) -> tuple[str, str]:
    """(media type, text) of a script element that holds the data: JSON, or gzip in base64 where that is large."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    if len(text) > PLAIN_BYTES:
        return "application/gzip", base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    # Inside a script element only "<" could end it or open a comment; JSON lets any character be written as \uXXXX.
    return "application/json", text.replace("<", "\\u003c")
