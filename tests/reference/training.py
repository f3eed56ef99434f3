"""One training update spelled out: project, drop the frozen, clip, Adam, learning rate, renormalise; float64."""

import numpy as np


class Explicit:
    """`unit` maps a parameter's name to the matrix M of its metric: its rows keep ||M row|| = 1 (last axis)."""

    def __init__(self, params, unit, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
        self.params = {name: np.asarray(p, np.float64) for name, p in params.items()}
        self.unit, self.b1, self.b2, self.eps, self.decay = unit, b1, b2, eps, weight_decay
        self.mu = {name: np.zeros(np.shape(p)) for name, p in params.items()}
        self.nu = {name: np.zeros(np.shape(p)) for name, p in params.items()}
        self.count = 0

    def update(self, grads, learning_rate, clip=None, frozen=(), project=True):
        grads = {name: np.asarray(g, np.float64) for name, g in grads.items()}
        for name, matrix in self.unit.items():
            if project:
                normal = self.params[name] @ matrix.T @ matrix
                normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
                grads[name] = grads[name] - (grads[name] * normal).sum(-1, keepdims=True) * normal
        for name in frozen:
            grads[name] = np.zeros_like(grads[name])
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = 1.0 if clip is None or norm < clip else clip / norm
        self.count += 1
        for name, g in grads.items():
            self.mu[name] = self.b1 * self.mu[name] + (1 - self.b1) * scale * g
            self.nu[name] = self.b2 * self.nu[name] + (1 - self.b2) * (scale * g) ** 2
            mu = self.mu[name] / (1 - self.b1**self.count)
            nu = self.nu[name] / (1 - self.b2**self.count)
            if name in frozen:
                continue
            direction = mu / (np.sqrt(nu) + self.eps) + self.decay * self.params[name]
            self.params[name] = self.params[name] - learning_rate * direction
            if name in self.unit:
                rows = self.params[name]
                self.params[name] = rows / np.linalg.norm(rows @ self.unit[name].T, axis=-1, keepdims=True)
