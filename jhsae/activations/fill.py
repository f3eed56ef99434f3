"""Writes the missing rows of activation stores, group by group, on all processes together."""

import logging

import numpy as np
from jaxtyping import Shaped

from jhsae.activations.streams import Streams
from jhsae.data import Writer
from jhsae.data.shuffle import Group
from jhsae.data.stream import Stream
from jhsae.parallel.distributed import barrier
from jhsae.parallel.progress import Progress

logger = logging.getLogger(__name__)
WAIT_SECONDS = 3600


def first_rows(stream: Stream, streams: Streams, rows: int) -> Shaped[np.ndarray, "taps rows embed"]:
    """The first rows of the stream at every hook."""
    parts = streams.rows(stream, 0, rows, streams.passes(stream, 0, rows))
    return np.concatenate([x for x, _ in parts], axis=1)


def fill(writers: list[Writer], stream: Stream, streams: Streams) -> None:
    """Writes every group that a store lacks: in each round every process takes one.

    Args:
        writers: One per hook of `streams`, in that order.
        stream: The packed tokens and their order.
        streams: The language model on the devices.
    """
    missing = sorted({group for writer in writers for group in writer.missing}, key=lambda group: group.number)
    barrier("counted", WAIT_SECONDS)  # no process writes before all have read what is there
    total, done = writers[0].rows, writers[0].rows - sum(group.rows for group in missing)
    if done:
        logger.info(f"going on after {done} rows")
    with Progress("harvest", total, done, unit="row") as progress:
        for start in range(0, len(missing), streams.writers):
            round_groups = missing[start : start + streams.writers]
            passes = max(streams.passes(stream, group.start, group.stop) for group in round_groups)
            group = round_groups[streams.writer] if streams.writer < len(round_groups) else Group(-1, 0, 0)
            x, index = _read(stream, streams, group, passes, progress, len(round_groups))
            for writer, rows in zip(writers, x, strict=True):
                if streams.writes and group in writer.missing:
                    writer.put(group, rows, index)
    for writer in writers:
        writer.flush()


def _read(
    stream: Stream, streams: Streams, group: Group, passes: int, progress: Progress, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a group at every hook, and their index; `groups` are read by as many processes at once."""
    x = np.empty((len(streams.hooks), group.rows, streams.embed), streams.dtype)
    index = np.empty((group.rows, 3), np.int32)
    held = 0
    for part, numbers in streams.rows(stream, group.start, group.stop, passes):
        x[:, held : held + len(numbers)], index[held : held + len(numbers)] = part, numbers
        held += len(numbers)
        progress.update(len(numbers) * groups, tokens=len(numbers) * groups)
    return x, index
