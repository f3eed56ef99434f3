"""What one TPU chip can do, from the public pages of Google Cloud (https://cloud.google.com/tpu/docs, "TPU v4" to
"TPU v6e", read in November 2026).

``ici`` is what one link sends in one direction: the page's bandwidth per chip over its links, halved where the page
counts both directions. ``hbm`` is what a program may use of the 32, 16, 95 and 32 GiB of the pages, as the compiler
(libtpu 0.0.42) says when a program is too large.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """Rates of one chip; None where no public page gives one."""

    name: str
    flops: float
    """bfloat16 products, FLOP/s. Float32 operands run at this rate too: by default XLA rounds them to bfloat16."""
    mxu: int
    """Rows and columns of a matrix unit: a product's sizes are rounded up to it."""
    hbm: float
    """Bytes of main memory that a program may use."""
    bandwidth: float
    """Bytes/s of main memory."""
    ici: float
    """Bytes/s that one link sends."""
    axes: int
    """Axes of the torus; two links each."""
    wraps: int
    """A slice is a ring along an axis whose size is a multiple of this; along others it is a line."""
    dcn: float | None
    """Bytes/s between slices, per chip."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 128, 30.75 * GIB, 1228e9, 50e9, 3, 4, None),
        Chip("v5e", 197e12, 128, 15.75 * GIB, 819e9, 50e9, 2, 16, 3.125e9),
        Chip("v5p", 459e12, 128, 95.74 * GIB, 2765e9, 100e9, 3, 4, 6.25e9),
        Chip("v6e", 918e12, 256, 31.25 * GIB, 1600e9, 100e9, 2, 16, 12.5e9),
    )
}
