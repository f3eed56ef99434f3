"""Log records of the package as lines of the command line: plain sentences without time or level.

Messages go to stdout; warnings, errors and progress go to stderr.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROGRESS = "jhsae.parallel.progress"


class Console(logging.StreamHandler):
    """Writes to the stdout and stderr of the moment, around progress bars that are drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        from tqdm import tqdm

        stream = sys.stderr if record.levelno >= logging.WARNING or record.name == PROGRESS else sys.stdout
        if stream is not None:  # closed by the parent process
            self.setStream(stream)
            with tqdm.external_write_mode(file=stream):
                super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A line that cannot be written (a closed pipe, a full disk) ends the command, as with `print`."""
        raise


@contextmanager
def console() -> Iterator[None]:
    """The records of the logger ``jhsae`` from INFO on are lines on the terminal while the block runs."""
    logger, handler = logging.getLogger("jhsae"), Console()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
