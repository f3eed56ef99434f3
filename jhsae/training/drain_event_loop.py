"""An asyncio event loop that awaits its pending tasks before it closes.

Orbax closes its loop as soon as one read has failed while others are pending. Python then prints a traceback for each
of them, hundreds of lines in all, around the one message that says what is damaged.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DrainingEventLoop(asyncio.SelectorEventLoop):
    """Awaits pending tasks on `close` and ignores their exceptions: the first one is raised where it is awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.set_exception_handler(lambda loop, context: None)

    def close(self) -> None:
        """Awaits what is pending, then closes."""
        if not self.is_closed():
            while pending := asyncio.all_tasks(self):
                self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        super().close()


@contextmanager
def draining_event_loops() -> Iterator[None]:
    """Event loops that this thread creates in the block are `DrainingEventLoop`s."""
    make, thread = asyncio.new_event_loop, threading.get_ident()
    asyncio.new_event_loop = lambda: DrainingEventLoop() if threading.get_ident() == thread else make()
    try:
        yield
    finally:
        asyncio.new_event_loop = make
