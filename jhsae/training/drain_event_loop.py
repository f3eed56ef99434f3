"""An event loop that lets its tasks end before it closes.

Orbax closes its loop as soon as one read has failed, while the others are under way. Python then prints a traceback
for each of them, hundreds of lines in all, beside the one sentence that says what is damaged.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class FinishingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.set_exception_handler(lambda loop, context: None)  # the first failure is raised; these are the others'

    def close(self) -> None:
        if not self.is_closed():
            while unfinished := asyncio.all_tasks(self):
                self.run_until_complete(asyncio.gather(*unfinished, return_exceptions=True))
        super().close()


@contextmanager
def loops_finish() -> Iterator[None]:
    """Event loops that this thread makes in the block are `FinishingLoop`s."""
    make, thread = asyncio.new_event_loop, threading.get_ident()
    asyncio.new_event_loop = lambda: FinishingLoop() if threading.get_ident() == thread else make()
    try:
        yield
    finally:
        asyncio.new_event_loop = make
