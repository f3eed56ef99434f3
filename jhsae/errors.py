"""Errors of user input, and the outcome of a command: one sentence and an exit code.

A `UserError` states what was got, what was expected and what to write instead. Errors with an `exit_code` have their
own message. A full disk, missing permissions and exhausted memory may occur anywhere and are recognised by errno or
message. Anything else is a bug and stays a traceback.
"""

import errno
import re
import traceback
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1000
WRONG, DIVERGED, NO_ROOM, PIPE = 2, 3, 4, 141

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO}
DENIED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP
}  # fmt: skip
WORDS = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT, "File too large": errno.EFBIG}


class UserError(ValueError):
    """Invalid user input. The command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 2


class NoRoomError(UserError):
    """A full disk or exhausted memory; the same command may resume when there is room."""

    exit_code = 4


def sentence(error: BaseException | str) -> str:
    """The text of an error, or a note, for a terminal: one line of at most `LONGEST` characters.

    Control characters are escaped: the text may quote a file.
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


def outcome(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit code of an expected failure, None for a bug."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return one_line(error), code
    if isinstance(error, MemoryError):
        return f"this machine's memory is used up ({one_line(error)}); {_LESS}", NO_ROOM
    if type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError") and "RESOURCE_EXHAUSTED" in str(error):
        return f"the memory of a device is used up ({one_line(error)}); {_LESS}", NO_ROOM
    if isinstance(error, UnicodeEncodeError) or (isinstance(error, ValueError) and "embedded null" in str(error)):
        return f"a path or a name has characters that no file can have ({one_line(error)}); write another", WRONG
    if isinstance(error, ImportError) and "install" in str(error).lower():  # the message of fsspec for a bucket
        return f"a library is missing ({one_line(error)})", WRONG
    number, reason = system_error(error), getattr(error, "strerror", None) or one_line(error)
    if number in FULL:
        return f"{_place(error)} cannot be written ({reason}); make room, then run the same command", NO_ROOM
    if number in DENIED or (number == errno.ENOENT and _raised_in(error) == "mkdir"):  # no folder can be made in /proc
        return f"{_place(error)} cannot be used ({reason}); write another path, or change its rights", WRONG
    return None


def no_room(error: BaseException) -> bool:
    """True for an operation that failed on a full disk."""
    return system_error(error) in FULL


def system_error(error: BaseException | None) -> int | None:
    """The errno of an error, from itself, its message (TensorStore, safetensors) or its cause."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    named = re.search(r"(?:OS error |os error |os_error_code=')(\d+)", str(error))
    found = int(named[1]) if named else next((n for words, n in WORDS.items() if words in str(error)), None)
    return system_error(error.__cause__) if found is None else found


def one_line(error: BaseException) -> str:
    """An error's text in one line, the beginning of a long one."""
    text = sentence(error) or type(error).__name__
    return text if getattr(error, "exit_code", None) or len(text) <= 300 else f"{text[:297]}..."


def _raised_in(error: BaseException) -> str:
    """The name of the function that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].name if frames else ""


def _place(error: BaseException) -> str:
    return str(getattr(error, "filename", None) or "a file")


_LESS = (
    "write less: data.batch, sae.chunk or fewer features in training, batch or context in harvest and evaluate; or use "
    "more devices"
)
