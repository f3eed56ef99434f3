"""``jhsae report``: evaluated runs as one HTML page that opens anywhere, offline and without scripts.

It reads files alone: the run folders, the manifests of their stores and, where one is named, a teacher. Beside the page
it writes results.jsonl, the newest row of every run as it stands there: every number of the tables can be found in it.
The same files give the same page, byte for byte.
"""

import os
import re
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from annotated_types import MinLen

from jhsae.commands.browse import shown_run
from jhsae.commands.last_line import last_line, opened
from jhsae.config import to_dict
from jhsae.errors import UserError
from jhsae.files import bounded
from jhsae.files.folders import local_folder, write_whole, writing
from jhsae.ranges import Words, ranged
from jhsae.report.page import MARKER, render
from jhsae.report.reading import Run, read_runs, read_teacher


@ranged
@dataclass(frozen=True)
class Report:
    """The runs to report, and where to."""

    runs: Annotated[list[Words], MinLen(1), "run folders (jhsae train, then jhsae evaluate), in the order of the rows"]
    out: Annotated[Words, "the page to write, such as runs/report.html; results.jsonl goes beside it"]
    title: Annotated[str, "heading of the page"] = "Sparse autoencoders, compared"
    teacher: Annotated[str | None, "folder of the teacher whose validation is shown; null for none"] = None
    notes: Annotated[list[str], "paragraphs of your own under the heading: what was asked, what to beware of"] = field(
        default_factory=list
    )
    commands: Annotated[list[str], "commands that made all this; empty: derived from the files"] = field(
        default_factory=list
    )
    browsers: Annotated[list[Words], "pages of jhsae browse about these runs, which the page links to"] = field(
        default_factory=list
    )


def run(config: Report) -> Path:
    """Writes the page and returns its path. Raises `UserError` before anything is written."""
    runs = read_runs(config.runs)
    teacher = read_teacher(config.teacher) if config.teacher else None
    out = local_folder(config.out)
    claim(out, runs)
    page = render(to_dict(config), runs, teacher, _addresses(config.browsers, runs, out))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out.parent / "results.jsonl", "".join(run.line + "\n" for run in runs))
    content = page.encode("utf-8", "backslashreplace")  # a lone surrogate is no text
    write_whole(out, content)
    count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    print(last_line(out, [count, *_best(runs), f"{len(content) / 1e6:.1f} MB"], opened(out)))
    return out


def _best(runs: list[Run]) -> list[str]:
    """The highest explained variance, and whose it is; nothing where no run has one."""
    found = [(run.metrics["ev_r2"], run.name) for run in runs if run.metrics.get("ev_r2") is not None]
    return [f"highest explained variance {value:.4g} ({name})" for value, name in sorted(found, reverse=True)[:1]]


def _addresses(pages: list[str], runs: list[Run], out: Path) -> dict[str, str]:
    """The address of every feature browser seen from the folder of `out`, by the name of its run."""
    found = {}
    for page in pages:
        if not Path(page).is_file():
            raise UserError(f"there is no feature browser {page}; make it with jhsae browse ... out={page}")
        name = shown_run(Path(page))
        if name not in [run.name for run in runs]:
            what = "is no page of jhsae browse" if name is None else f"shows the latents of {name}"
            raise UserError(f"{page} {what}; write the page of one of {', '.join(run.name for run in runs)}")
        found[str(name)] = quote(Path(os.path.relpath(page, out.parent)).as_posix())
    return found


def claim(out: Path, runs: list[Run]) -> None:
    """Raises `UserError` where writing `out`, or results.jsonl beside it, would lose something.

    A report may be written again over itself, and with more runs than before.
    """
    if out.suffix != ".html":
        raise UserError(f"out is {out}, expected the name of an HTML file; write out={out / 'report.html'}")
    if (out.parent / "run.json").exists():
        raise UserError(
            f"out is inside the run folder {out.parent}, whose results.jsonl is its own; write another out=..."
        )
    if not os.path.lexists(out):
        if (out.parent / "results.jsonl").exists():
            raise UserError(f"{out.parent} holds a results.jsonl, but not this report's; write another out=...")
        return
    reported = reported_runs(out)
    lost = sorted(reported - {run.name for run in runs})
    if lost:
        raise UserError(f"{out} reports {', '.join(lost)}, which runs does not list; add it, or write another out=...")


def reported_runs(page: Path) -> set[str]:
    """The runs of a page that `run` wrote; any other file is a `UserError`."""
    start = bounded.read_start(page, 100_000).decode(errors="replace")
    found = re.search(rf'<meta name="{MARKER}" content="([^"]*)">', start)
    names = bounded.parse_json(unescape(found[1]), page) if found else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{page} exists and is not a report of jhsae; write another out=...")
    return set(names)
