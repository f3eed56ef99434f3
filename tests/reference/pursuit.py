"""The pursuit of one token after the other, in plain NumPy."""

import numpy as np


def pursuit(x, rows, parents, least, picks, most_children=None, keep=None, sweeps=3, after=None):
    """The codes, [tokens, rows], the scores of what entered, and of the first that did not; see `jhsae.ops.pursuit`.

    `after`: whether a sweep follows each pick; None: after every pick.
    """
    codes, entered, left = np.zeros((len(x), len(rows))), [], np.zeros(len(x))
    for token, z in enumerate(codes):
        inside, scores = [], []

        def sweep(of, z=z, token=token):
            for i in of[::-1]:
                z[i] = max(0.0, z[i] + rows[i] @ (x[token] - z @ rows))

        while len(inside) < picks:
            room = [sum(parents[j] == p for j in inside) < (most_children or len(rows)) for p in range(len(rows))]
            is_open = [i not in inside and (p < 0 or (p in inside and room[p])) for i, p in enumerate(parents)]
            score = np.where(is_open, rows @ (x[token] - z @ rows), -np.inf)
            if score.max() <= least:
                left[token] = min([score.max(), *scores])
                break
            z[score.argmax()] = score.max()
            if after is None or after[len(inside)]:
                sweep(inside)
            inside.append(score.argmax())
            scores.append(min([score.max(), *scores]))
        for _ in range(sweeps):
            sweep(inside)
        while keep is not None and np.sum(z > 0) > keep:
            leaf = [z[i] > 0 and not any(z[j] > 0 for j in inside if parents[j] == i) for i in range(len(rows))]
            z[np.where(leaf, z, np.inf).argmin()] = 0.0
            sweep([i for i in inside if z[i] > 0])
        stay = [i for i in inside if z[i] > 0]
        for _ in range(sweeps if keep is not None else 0):
            sweep(stay)
        entered.append([s for i, s in zip(inside, scores, strict=True) if z[i] > 0])
    return codes, entered, left


def refitted(x, rows, codes, sweeps=200):
    """Non-negative least squares on the support of `codes`."""
    values = codes.copy()
    for z, token in zip(values, x, strict=True):
        for i in list(np.flatnonzero(z)) * sweeps:
            z[i] = max(0.0, z[i] + rows[i] @ (token - z @ rows) / (rows[i] @ rows[i]))
    return values
