"""Loss terms by explicit double loops over pairs of rows, in float64."""

import numpy as np


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def off_diagonal_mean(a, b):
    """mean over i != j of (a_i . b_j)^2; 0 for one row."""
    pairs = [(a[i] @ b[j]) ** 2 for i in range(len(a)) for j in range(len(b)) if i != j]
    return float(np.mean(pairs)) if pairs else 0.0


def row_diagonal(enc, dec):
    """||E D - jnp.diag(E D)||_F / (n^2 - n): numpy broadcasts the diagonal over the rows, as the original did."""
    product = unit(dec) @ unit(enc).T
    n = len(product)
    return float(np.linalg.norm(product - np.diag(product)) / (n * n - n))


def distance_to_identity(enc, dec):
    return float(np.linalg.norm(enc @ dec.T - np.eye(len(enc))) ** 2)


def causal_cosines(p, matrix):
    """cos(router_dec_e, atom_dec_ea up_e) for every expert and atom, after mapping by `matrix`."""
    parents, deltas = p["router_dec"] @ matrix.T, np.einsum("eas,esd->ead", p["atom_dec"], p["up"]) @ matrix.T
    return np.array([[unit(parents[e]) @ unit(d) for d in deltas[e]] for e in range(len(parents))])


def minus_parent(p, matrix):
    """sum of <parent, delta - parent>^2 after mapping by `matrix`."""
    total = 0.0
    for e, parent in enumerate(p["router_dec"]):
        for atom in p["atom_dec"][e]:
            total += ((matrix @ parent) @ (matrix @ (atom @ p["up"][e] - parent))) ** 2
    return total
