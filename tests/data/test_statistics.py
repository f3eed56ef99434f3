import ml_dtypes
import numpy as np

from jhsae.data.statistics import Running


def oracle(x: np.ndarray) -> dict[str, float]:
    x = x.astype(np.float64)
    norm = np.linalg.norm(x, axis=1)
    variance = np.mean(np.sum((x - x.mean(0)) ** 2, axis=1))
    return {
        "mean_norm": norm.mean(),
        "rms_norm": np.sqrt((norm**2).mean()),
        "min_norm": norm.min(),
        "max_norm": norm.max(),
        "total_variance": variance,
    }


def test_merged_blocks_give_the_statistics_of_all_rows():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        x = (1000 + rng.normal(size=(997, 5)) * [1, 2, 3, 4, 5]).astype(dtype)
        running = Running.empty(5)
        for block in np.split(x, [1, 3, 100, 101, 600]):
            running = running.merge(Running.of(block))
        summary = running.summary()
        np.testing.assert_allclose(summary.mean, x.astype(np.float64).mean(0), rtol=1e-14)
        for name, value in oracle(x).items():
            np.testing.assert_allclose(getattr(summary, name), value, rtol=1e-12, err_msg=name)
