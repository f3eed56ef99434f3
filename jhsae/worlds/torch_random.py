"""The numbers of torch's CPU generator, without torch, for the values that SAELens regenerates when it loads a world.

torch seeds the 32-bit Mersenne Twister (MT19937) as NumPy's legacy seeding does. Uniform float32: the low 24 bits of a
word. Normal: Box and Muller (1958), in float64 one pair after the other below 16 numbers, else in float32 on blocks of
16, of which the last is drawn again where it overlaps.
"""

import numpy as np
from jaxtyping import Float32, UInt32

from jhsae.ranges import Seed

BLOCK = 16
MANTISSA, LONG_MANTISSA = 24, 53


def uniform(seed: Seed, count: int) -> Float32[np.ndarray, "count"]:
    """``torch.rand(count, generator=torch.Generator().manual_seed(seed))``."""
    return _uniform(_words(seed, count))


def normal(seed: Seed, count: int) -> Float32[np.ndarray, "count"]:
    """``torch.randn(count, generator=torch.Generator().manual_seed(seed))``, up to float32 rounding."""
    if count < BLOCK:
        return _few_normal(seed, count)
    rest = BLOCK if count % BLOCK else 0
    drawn = _uniform(_words(seed, count + rest))
    whole = count - count % BLOCK
    out = np.concatenate([_box_muller(drawn[:whole].reshape(-1, BLOCK)).reshape(-1), np.zeros(count - whole)])
    if rest:
        out[-BLOCK:] = _box_muller(drawn[count:][None])[0]
    return out.astype(np.float32)


def _words(seed: int, count: int) -> UInt32[np.ndarray, "count"]:
    return np.random.RandomState(seed % 2**32).randint(0, 2**32, count, np.uint32)


def _uniform(words: UInt32[np.ndarray, "count"]) -> Float32[np.ndarray, "count"]:
    return (words & (2**MANTISSA - 1)).astype(np.float32) * np.float32(2.0**-MANTISSA)


def _box_muller(drawn: Float32[np.ndarray, "blocks 16"]) -> Float32[np.ndarray, "blocks 16"]:
    half = BLOCK // 2
    radius = np.sqrt(-2 * np.log(1 - drawn[:, :half]))
    angle = np.float32(2 * np.pi) * drawn[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _few_normal(seed: int, count: int) -> Float32[np.ndarray, "count"]:
    pairs = -(-count // 2)
    words = _words(seed, 4 * pairs).astype(np.uint64).reshape(pairs, 2, 2)
    long = (words[..., 0] << np.uint64(32)) | words[..., 1]
    drawn = (long & np.uint64(2**LONG_MANTISSA - 1)).astype(np.float64) * 2.0**-LONG_MANTISSA
    radius, angle = np.sqrt(-2 * np.log1p(-drawn[:, 1])), 2 * np.pi * drawn[:, 0]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count].astype(np.float32)
