"""Fills activation stores with the rows that are missing in them, group by group, on all processes together."""

import numpy as np
from jaxtyping import Shaped
from tqdm import tqdm

from jhsae.activations.streams import Streams
from jhsae.data import Writer
from jhsae.data.shuffle import Group
from jhsae.data.stream import Stream
from jhsae.parallel.distributed import barrier, is_main

WAIT_SECONDS = 3600


def first_rows(stream: Stream, streams: Streams, rows: int) -> Shaped[np.ndarray, "taps rows embed"]:
    """The first rows of the stream at every layer."""
    parts = streams.rows(stream, 0, rows, streams.passes(stream, 0, rows))
    return np.concatenate([x for x, _ in parts], axis=1)


def fill(writers: list[Writer], stream: Stream, streams: Streams) -> None:
    """Writes every group that a store misses: in each round every process takes one group."""
    missing = sorted({group for writer in writers for group in writer.missing}, key=lambda group: group.number)
    barrier("counted", WAIT_SECONDS)  # nobody writes before all have looked at what is there
    total, done = writers[0].rows, writers[0].rows - sum(group.rows for group in missing)
    if done:
        say(f"going on after {done} rows")
    with tqdm(
        total=total, initial=done, desc="harvest", unit="row", unit_scale=True, disable=None if is_main() else True
    ) as bar:
        for start in range(0, len(missing), streams.writers):
            dealt = missing[start : start + streams.writers]
            passes = max(streams.passes(stream, group.start, group.stop) for group in dealt)
            group = dealt[streams.number] if streams.number < len(dealt) else Group(-1, 0, 0)
            x, index = _read(stream, streams, group, passes, bar, len(dealt))
            for writer, rows in zip(writers, x, strict=True):
                if streams.leads and group in writer.missing:
                    writer.put(group, rows, index)
    for writer in writers:
        writer.flush()


def _read(
    stream: Stream, streams: Streams, group: Group, passes: int, bar: tqdm, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a group at every layer, and their index."""
    x = np.empty((len(streams.layers), group.rows, streams.embed), streams.dtype)
    index = np.empty((group.rows, 3), np.int32)
    held = 0
    for part, numbers in streams.rows(stream, group.start, group.stop, passes):
        x[:, held : held + len(numbers)], index[held : held + len(numbers)] = part, numbers
        held += len(numbers)
        bar.update(len(numbers) * groups)
    return x, index


def say(sentence: str) -> None:
    """Prints in the main process."""
    if is_main():
        print(sentence)
