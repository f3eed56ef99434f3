"""The one exception for wrong input: a sentence with what was got, what was expected, what to write."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1000


class UserError(ValueError):
    """Input that the user can mend. The command line prints it alone and exits with `exit_code`."""

    exit_code = 2


class NoRoomError(UserError):
    """No room on a disk or in memory for what was asked for; the same command may go on when there is."""

    exit_code = 4


def sentence(error: BaseException | str) -> str:
    """The text of an error, or a note, as a terminal shows it: one line of at most `LONGEST` characters.

    Characters that have no shape, such as those that steer a terminal, are written out: the text may quote a file.
    """
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'learning_rate'?`` or the list of what exists."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
