"""A dictionary that jhsae trained and a pursuit encodes, for anywhere that torch runs: torch and the standard library.

    from pursuit import Pursuit
    sae = Pursuit.load("folder")
    f = sae.encode(x)          # x [..., D], raw activations of the language model -> f [..., F]
    x_hat = sae.decode(f)      # f @ W_dec + b_dec: linear, in the same units

The F rows lie in a forest, level by level: the roots, then the children of root 0, of root 1, ... At every pick the
roots and the children of the rows that are in compete; the one with the largest product with the residual enters while
that exceeds the threshold, and a sweep of non-negative least squares moves the values of all that are in. If roots are
screened, only candidates compete, chosen anew in every round. The rows of `W_dec` have norm 1: their norms, and the
token's scale where each was normalised by itself, are in f. An empty slot is a row of zeros, which never fires.
"""

import math
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from jhsae.assets.torch.shared import (
    CONFIG,
    DEPTH,
    THROUGH,
    WEIGHTS,
    Exported,
    check_tensors,
    times,
)

BUDGETS = {"Threshold": ("most",), "ExactL0": ("k", "extra")}
MOST = 2**26  # scores, tokens x F, that are in memory at once


def check(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """ValueError for settings of another format, or weights other than those that they describe."""
    got = check_tensors(settings, weights, "pursuit.py")
    budget, screened, levels = (settings.get(name) or {} for name in ("budget", "screened", "levels"))
    budget, screened = (part if isinstance(part, dict) else {"": part} for part in (budget, screened))
    listed = isinstance(levels, list) and len(levels) <= DEPTH and all(_count(n) for n in levels)
    size, rows = sum(accumulate(levels, lambda above, each: above * each)) if listed else 0, got.get("rows", [])
    rule = str(budget.get("rule"))
    known = rule in BUDGETS and all(_count(budget.get(key), 0) for key in BUDGETS[rule])
    picks, rounds = sum(budget[key] for key in BUDGETS[rule]) if known else 0, screened.get("rounds", 0)
    scale, most, swept = (settings.get(name) for name in ("token_scale", "most_children", "swept"))
    numbers: list[Any] = [scale.get(key) for key in ("eps", "factor")] if isinstance(scale, dict) else [-1]
    scaled = all(type(one) in (int, float) and 0 <= one < 1e30 for one in numbers)
    for name, right in (
        ("levels", len(rows) == 2 and rows[0] == size > 0),
        ("budget", 1 <= picks <= size and ("budget_threshold" in got) == (rule == "Threshold")),
        ("screened", not screened or (_count(screened.get("candidates")) and _count(rounds) and rounds <= picks)),
        ("screened", isinstance(screened.get("by_round", False), bool)),
        ("sweeps", _count(settings.get("sweeps"), 0)),
        ("swept", swept is None or (isinstance(swept, list) and len(swept) <= size and all(map(_count, swept)))),
        ("most_children", most is None or _count(most)),
        ("token_scale", scale is None or (scaled and numbers[1] > 0)),
    ):
        if not right:
            raise ValueError(f"{CONFIG}: '{name}' is {str(settings.get(name))[:99]}, which does not fit rows {rows}")
    axes = {"b_dec": ("D",), **THROUGH} | ({"budget_threshold": ("",)} if rule == "Threshold" else {})
    for name, shapes_of in axes.items():
        if got.get(name) not in [[rows[1]] * len(one) for one in shapes_of]:
            raise ValueError(f"{WEIGHTS}: '{name}' has shape {got.get(name)}, which does not fit the other tensors")


def _count(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value < 2**53


def parents_of(levels: list[int]) -> Tensor:
    """The parent of each row, -1 for a root."""
    sizes = list(accumulate(levels, lambda above, each: above * each))
    below = torch.cat([torch.full((n,), each) for n, each in zip([1, *sizes], levels, strict=False)])  # slots of each
    return torch.arange(-1, len(below) - 1).repeat_interleave(below)


def schedule(picks: int, rounds: int) -> list[int]:
    """The picks of each round: few first, because the first picks change the scores most."""
    ends = [0, *(max(i, round(picks * (i / rounds) ** 2)) for i in range(1, rounds + 1))]
    return [end - start for start, end in pairwise(ends)]


class Chosen:
    """The rows that are in, by slot: numbers, vectors, values, and their products with the residual and each other."""

    def __init__(self, x: Tensor, picks: int):
        self.rows = torch.full((len(x), picks), -1, device=x.device)  # -1: an empty slot
        self.vectors, self.products = x.new_zeros(len(x), picks, x.shape[1]), x.new_zeros(len(x), picks, picks)
        self.values, self.left = x.new_zeros(len(x), picks), x.new_zeros(len(x), picks)

    def enter(self, t: int, row: Tensor, vector: Tensor, score: Tensor, on: Tensor) -> None:
        """A row in slot t of the tokens `on`, with its score as its value."""
        self.rows[:, t] = torch.where(on, row, -1)
        self.vectors[:, t] = torch.where(on[:, None], vector, 0.0)
        self.values[:, t] = torch.where(on, score, 0.0)
        products = (self.vectors @ self.vectors[:, t, :, None])[..., 0]
        self.products[:, t], self.products[:, :, t] = products, products
        self.left -= self.values[:, t, None] * products
        self.left[:, t] = 0.0

    def residual(self, x: Tensor) -> Tensor:
        """What the rows that are in leave of the tokens."""
        return x - (self.values[:, None] @ self.vectors)[:, 0]

    def sweep(self, end: int, on: Tensor | bool = True, times: int = 1) -> None:
        """Sweeps of non-negative Gauss-Seidel over the slots before `end`, the last first, of the tokens `on`."""
        for slot in [*reversed(range(end))] * times:
            old = self.values[:, slot]
            change = torch.where((self.rows[:, slot] >= 0) & on, (old + self.left[:, slot]).clamp(min=0.0) - old, 0.0)
            self.values[:, slot] = old + change
            self.left -= change[:, None] * self.products[:, slot]

    def prune(self, keep: int, parents: Tensor) -> None:
        """The smallest leaves leave until at most `keep` values of a token are above 0; after each follows a sweep."""
        self.rows = torch.where(self.values > 0, self.rows, -1)
        for _ in range(max(self.rows.shape[1] - keep, 0)):
            live = self.values > 0
            is_parent = (torch.where(live, parents[self.rows], -2)[:, None] == self.rows[..., None]).any(-1)
            smallest = torch.where(live & ~is_parent, self.values, math.inf).argmin(-1, keepdim=True)
            over = live.sum(-1, keepdim=True) > keep
            gone = torch.zeros_like(live).scatter(1, smallest, over) & live
            self.left = self.left + (torch.where(gone, self.values, 0.0)[:, None] @ self.products)[:, 0]
            self.values, self.rows = self.values.masked_fill(gone, 0.0), torch.where(gone, -1, self.rows)
            self.sweep(self.rows.shape[1], over[:, 0])


class Structure(torch.nn.Module):
    """The dictionary as it was trained, and the pursuit that finds the codes."""

    def __init__(self, settings: Mapping[str, Any], weights: Mapping[str, Tensor]):
        super().__init__()
        self.parents: Tensor
        check(settings, weights)
        self.settings = dict(settings)
        frozen = {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in weights.items()}
        self.weights = torch.nn.ParameterDict(frozen)
        self.register_buffer("parents", parents_of(settings["levels"]), persistent=False)

    def normalised(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """x' and the scale by which the token's codes are multiplied."""
        moved, rule = times(x - self.weights["shift"], self.weights["matrix"]), self.settings["token_scale"]
        if rule is None:
            return moved, 1.0
        norm = torch.linalg.vector_norm(moved, dim=-1, keepdim=True) + rule["eps"]
        scale = torch.where(norm > 0, norm, 1.0) * rule["factor"]
        return moved / scale, scale

    def forward(self, x: Tensor) -> Tensor:
        """Codes [batch, F] of tokens [batch, D], in the units of the dictionary as trained, times the token's scale."""
        (inside, scale), rows = self.normalised(x), self.weights["rows"]
        exact = torch.promote_types(rows.dtype, torch.float32)  # half precision is too coarse
        parts = (inside - self.weights["b_dec"]).detach().to(exact).split(max(1, MOST // len(rows)))
        return torch.cat([self.pursued(part, rows.to(exact)) for part in parts]).to(rows.dtype) * scale

    def pursued(self, x: Tensor, rows: Tensor) -> Tensor:
        """The pursuit of some tokens."""
        budget, screened, start = self.settings["budget"], self.settings["screened"], 0
        picks = sum(budget[key] for key in BUDGETS[budget["rule"]])
        swept = self.settings.get("swept") or range(1, picks + 1)  # the picks that a sweep follows
        threshold = self.weights["budget_threshold"].to(x.dtype) if budget["rule"] == "Threshold" else 0.0
        chosen, opened = Chosen(x, picks), (self.parents < 0).repeat(len(x), 1)
        for count in schedule(picks, screened["rounds"] if screened else 1):
            competing = self.candidates(x, rows, chosen, opened) if screened else True
            for t in range(start, start + count):
                scores = torch.where(opened & competing & self.free(chosen), chosen.residual(x) @ rows.T, -math.inf)
                best = scores.max(-1, keepdim=True).values
                row, on = (scores == best).byte().argmax(-1), best[:, 0] > threshold  # of equals, the first
                if not on.any():
                    break
                chosen.enter(t, row, rows[row], best[:, 0], on)
                chosen.sweep(t + 1 if t + 1 in swept else 0, on)
                below = self.parents == row[:, None]
                opened = torch.where(on[:, None], (opened | below).scatter(1, row[:, None], False), opened)
            start += count
        chosen.sweep(picks, times=self.settings["sweeps"])
        if "k" in budget:
            chosen.prune(budget["k"], self.parents)
            chosen.sweep(picks, times=self.settings["sweeps"])
        return x.new_zeros(len(x), len(rows)).scatter_add_(1, chosen.rows.clamp(min=0), chosen.values)

    def candidates(self, x: Tensor, rows: Tensor, chosen: Chosen, opened: Tensor) -> Tensor:
        """Which rows may compete in this round: the best roots and all below a root, or the best open rows by round."""
        below = (self.parents >= 0) & (not self.settings["screened"].get("by_round"))
        scores = torch.where(opened & ~below, chosen.residual(x) @ rows.T, -math.inf)
        best = scores.topk(min(self.settings["screened"]["candidates"], self.settings["levels"][0]))
        return below.repeat(len(x), 1).scatter_(1, best.indices, best.values > -math.inf)

    def free(self, chosen: Chosen) -> Tensor | bool:
        """Which rows have a parent with fewer children in than may be."""
        if (most := self.settings["most_children"]) is None:
            return True
        above = torch.where(chosen.rows >= 0, self.parents[chosen.rows], -1) + 1  # 0 for none
        counts = chosen.values.new_zeros(len(above), len(self.parents) + 1)
        counts.scatter_add_(1, above, torch.ones_like(chosen.values))
        return (self.parents < 0) | (counts[:, self.parents + 1] < most)

    @torch.no_grad()
    def flattened(self) -> dict[str, Tensor]:
        """W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D] and norms [F], in the units of the language model.

        f = `forward` times `norms`. ``x @ W_enc + b_enc`` is the score of every row with the token before anything is
        in, times the norm; where inputs are scaled token by token, x is the scaled one. An empty slot has norm 1.
        """
        w = {name: tensor.float() for name, tensor in self.weights.items()}
        rows, matrix = times(w["rows"], w["inverse"]), w["matrix"]
        norms = torch.where(rows.any(-1), torch.linalg.vector_norm(rows, dim=-1), 1.0)
        reads = times(w["rows"], matrix.T if matrix.ndim == 2 else matrix)
        flat = {
            "W_enc": (reads * norms[:, None]).T.contiguous(),
            "b_enc": -(w["rows"] @ w["b_dec"] + reads @ w["shift"]) * norms,
            "W_dec": rows / norms[:, None],
            "b_dec": times(w["b_dec"], w["inverse"]) + w["shift"],
            "norms": norms,
        }
        return {name: tensor.to(self.weights["rows"].dtype) for name, tensor in flat.items()}


class Pursuit(Exported):
    """The pursuit of an exported folder; W_enc and b_enc are a flat view of the first scores of `encode`."""

    computes = Structure
