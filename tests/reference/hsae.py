"""The hierarchical SAE, token by token, in float64: one loop per sum in the equation."""

import numpy as np


def topk(x, k):
    """Positions of the k largest entries of the last axis; ties to the lowest position."""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k]


def sparsifier(activate, k, best_of=lambda activated, pre: activated):
    """A function from one row of pre-activations to (positions, values)."""

    def select(pre):
        activated = activate(pre)
        chosen = topk(best_of(activated, pre), k)
        return chosen, activated[chosen]

    return select


def relu(k):
    return sparsifier(lambda pre: np.maximum(pre, 0.0), k)


def offset(k, threshold, slope=0.0):
    return sparsifier(lambda pre: np.where(pre >= threshold, pre, slope * pre), k)


def binary(k):
    return sparsifier(np.ones_like, k, best_of=lambda activated, pre: pre)


def forward(x, p, route, pick, *, residual=False, scaled=False, centre=True):
    """(x_hat, coarse, dense codes over experts * (1 + atoms)) of every row of x; `p` maps names to arrays."""
    experts, atoms, _ = p["atom_dec"].shape
    b_dec = p.get("b_dec", np.zeros(x.shape[1]))
    x_hat, coarse, codes = np.zeros_like(x), np.zeros_like(x), np.zeros((len(x), experts * (1 + atoms)))
    for t, token in enumerate(x):
        centred = token - b_dec if centre else token
        parents = list(zip(*route(p["router_enc"] @ centred + p.get("b_enc", 0.0)), strict=True))
        top = sum(v * p["router_dec"][e] for e, v in parents)
        coarse[t] = top + b_dec
        x_hat[t] = coarse[t]
        for e, v in parents:
            codes[t, e] = v
            if v == 0:
                continue
            hidden = p["down"][e] @ (centred - top if residual else centred)
            pre = p["atom_enc"][e] @ hidden + (p["b_atom"][e] if "b_atom" in p else 0.0)
            for a, c in zip(*pick(pre), strict=True):
                value = c * v if scaled else c
                codes[t, experts + e * atoms + a] = value
                x_hat[t] += value * (p["atom_dec"][e, a] @ p["up"][e])
    return x_hat, coarse, codes


def parameters(sae):
    """The arrays of a HierarchicalSAE by name, in float64, with a tied encoder read from its decoder."""
    p = dict(zip(("router_enc", "down", "atom_enc"), sae.encoders(), strict=True))
    p |= {name: getattr(sae, name) for name in ("router_dec", "up", "atom_dec", "b_enc", "b_atom", "b_dec")}
    return {name: np.asarray(a, np.float64) for name, a in p.items() if a is not None}
