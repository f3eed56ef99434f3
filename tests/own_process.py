"""Runs a function of a test module in a process of its own."""

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

SECONDS = 120


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Fails where `function` raises there, or takes more than `SECONDS`.

    For a save that fails: tensorstore keeps the coroutines that Orbax had begun, and where they are collected later,
    another test is told of them.
    """
    process = get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join(SECONDS)
    code = process.exitcode
    process.kill()
    assert code == 0, f"{function.__name__} ended with code {code}"
