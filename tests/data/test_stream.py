import numpy as np
from small_stores import tokenizer

from jhsae.data.stream import Stream


def test_any_stretch_of_the_stream_is_found_in_the_sequences_that_hold_it():
    tokens = np.random.default_rng(0).integers(0, 8, (30, 6)).astype(np.uint32)
    tokens[4] = 1  # a sequence without one ordinary token
    stream = Stream.of(tokens, tokenizer(), 3)
    whole = [
        (s, p, tokens[s, p]) for s in np.random.default_rng(3).permutation(30) for p in range(6) if tokens[s, p] > 2
    ]
    assert stream.rows == len(whole)
    for start, stop in ((0, 1), (0, len(whole)), (17, 18), (5, 60), (len(whole) - 1, len(whole))):
        first, last = stream.span(start, stop)
        parts = [stream.rows_at(at, min(at + 4, last), start, stop) for at in range(first, last, 4)]
        np.testing.assert_array_equal(np.concatenate([index for _, _, index in parts]), whole[start:stop])
        for at, (sequence, position, index) in zip(range(first, last, 4), parts, strict=True):
            np.testing.assert_array_equal(stream.order[at : at + 4][sequence], index[:, 0])
            np.testing.assert_array_equal(position, index[:, 1])
