"""The last line of a verb: what was made, its main numbers, and the next command to type."""

import shlex
from collections.abc import Sequence
from pathlib import Path


def last_line(made: str | Path, numbers: Sequence[str], following: str) -> str:
    """``runs/x: explained variance 0.78, L0 15.7; next: jhsae browse run=runs/x ...``."""
    return with_next(f"{made}: {', '.join(numbers)}", following)


def with_next(summary: str, following: str) -> str:
    """A summary of what was made, and the next command."""
    return f"{summary}; next: {following}"


def command(*words: str | Path, trust: str | Sequence[str] = ()) -> str:
    """A command line, quoted for the shell; `trust` is the key of that name, left out where it is empty."""
    packages = [trust] if isinstance(trust, str) else list(trust)
    more = [f"trust=[{','.join(packages)}]"] if packages else []
    return " ".join(shlex.quote(str(word)) for word in (*words, *more))


def opened(page: Path) -> str:
    """The command that opens a page in a browser."""
    return command("python", "-m", "webbrowser", page)
