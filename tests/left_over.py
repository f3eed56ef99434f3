"""What a failed save of Orbax leaves over, and when it is gone."""

import gc
import inspect
import time


def wait_for_the_threads_of_a_failed_save(seconds: float = 30.0) -> None:
    """Returns when no coroutine that Orbax had begun is left.

    Its threads end after the save has raised. Collected later, a coroutine would be reported by another test.
    """
    end = time.monotonic() + seconds
    while names := begun():
        assert time.monotonic() < end, f"still there after {seconds} s: {names}"
        time.sleep(0.05)


def begun() -> set[str]:
    """The names of the coroutines that are alive after a collection."""
    gc.collect()
    return {one.__qualname__ for one in gc.get_objects() if inspect.iscoroutine(one)}
