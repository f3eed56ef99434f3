"""A hierarchical sparse autoencoder that jhsae trained, for anywhere that torch runs: torch and the standard library.

    from hsae import HSAE
    sae = HSAE.load("folder")
    f = sae.encode(x)          # x [..., D], raw activations of the language model -> f [..., F]
    x_hat = sae.decode(f)      # f @ W_dec + b_dec: linear, in the same units

The F = E (1 + A) latents are the E experts, then atom a of expert e at E + e A + a. `encode` routes and picks as in
training: parents = route(router_enc x' + b_enc); for each active expert, atoms = pick(atom_enc_e down_e x' + b_atom);
x' is the normalised token. The rows of `W_dec` have norm 1: their norms, and the token's own scale where inputs were
normalised token by token, are in f. Muchane et al., arXiv 2506.01197.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jhsae.assets.torch.shared import (
    CONFIG,
    THROUGH,
    WEIGHTS,
    Exported,
    check_tensors,
    times,
)

# the axes of every tensor; those of a tied encoder are missing, and biases may be
AXES = {"router_dec": "ED", "up": "ESD", "atom_dec": "EAS", "router_enc": "ED", "down": "ESD", "atom_enc": "EAS"}
AXES |= {"b_enc": "E", "b_atom": "EA", "b_dec": "D"}
NEEDED = ("router_dec", "up", "atom_dec")
THRESHOLDS = {"route_threshold": ("1", "E"), "pick_threshold": ("1", "A", "EA")}
RULES = {"ReLU": (), "JumpReLU": (), "TopK": ("k",), "GumbelTopK": ("k",), "BinaryGumbelTopK": ("k",)}
RULES |= {"BestAtoms": ("keep",), "OffsetTopK": ("k", "offset"), "LeakyOffsetTopK": ("k", "offset", "slope")}
FLAT, FLAT_RATIO = 2**27, 1000  # numbers of the flat view: always fine, and how many for one of the weights
GATHERED = 2**26  # numbers of `down` that one pass over the atoms may gather


def check(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """ValueError for settings of another format, or weights other than those that they describe."""
    got = check_tensors(settings, weights, "hsae.py")
    sizes = _sizes(got)
    for slot, features in (("route", sizes["E"]), ("pick", sizes["A"])):
        _check_rule(settings, slot, features, got)
    scale = settings.get("token_scale")
    fine = scale is None
    if isinstance(scale, dict) and _number(eps := scale.get("eps")) and _number(factor := scale.get("factor")):
        fine = float(eps or 0) >= 0 and float(factor or 0) > 0
    for name, right in (
        ("token_scale", fine),
        ("child_input", settings.get("child_input") in ("Token", "Residual")),
        ("child_scale", settings.get("child_scale") in ("Unscaled", "ScaledByParent")),
        ("apply_b_dec_to_input", type(settings.get("apply_b_dec_to_input")) is bool),
    ):
        if not right:
            raise ValueError(f"{CONFIG}: '{name}' is {str(settings.get(name))[:100]}, which this module does not know")


def _sizes(shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """The sizes E, D, S and A, of which every tensor must be made."""
    found = {"1": 1}
    for name, axes in AXES.items():
        if name in shapes:
            shape = shapes[name]
            fits = (n > 0 and found.setdefault(a, n) == n for a, n in zip(axes, shape, strict=True))
            if len(shape) != len(axes) or not all(fits):
                raise ValueError(f"{WEIGHTS}: '{name}' has shape {shape}, expected [{', '.join(axes)}] as elsewhere")
        elif name in NEEDED:
            raise ValueError(f"{WEIGHTS}: no tensor '{name}'; the two files belong to different exports")
    for name in (*THROUGH, *THRESHOLDS):
        known = THROUGH.get(name) or THRESHOLDS[name]
        if name in shapes and shapes[name] not in [[found[a] for a in axes] for axes in known]:
            raise ValueError(f"{WEIGHTS}: '{name}' has shape {shapes[name]}, which does not fit the other tensors")
        if name in THROUGH and name not in shapes:
            raise ValueError(f"{WEIGHTS}: no tensor '{name}'; the two files belong to different exports")
    flat, held = found["E"] * (1 + found["A"]) * found["D"], sum(math.prod(shape) for shape in shapes.values())
    if flat > max(FLAT, FLAT_RATIO * held):
        raise ValueError(f"{WEIGHTS}: {held:,} numbers describe a dictionary of {flat:,}, which no training makes")
    return found


def _check_rule(settings: Mapping[str, Any], slot: str, features: int, shapes: Mapping[str, Any]) -> None:
    rule: dict[str, Any] = settings[slot] if isinstance(settings.get(slot), dict) else {}
    name = rule.get("rule")
    if not isinstance(name, str) or name not in RULES or (name == "BestAtoms" and slot != "pick"):
        raise ValueError(f"unknown sparsifier {str(name)[:99]!r}; take the hsae.py that was written beside the weights")
    for key in RULES[name]:
        value = rule.get(key)
        most = {"k": features, "keep": 2**31}.get(key)
        if not _number(value) or (most is not None and (type(value) is not int or not 1 <= value <= most)):
            expected = "a number" if most is None else f"a whole number from 1 to {most}"
            raise ValueError(f"{CONFIG}: '{slot}.{key}' is {str(value)[:100]}, expected {expected}")
    if name == "JumpReLU" and f"{slot}_threshold" not in shapes:
        raise ValueError(f"{WEIGHTS}: no tensor '{slot}_threshold'; the two files belong to different exports")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def kept(values: Tensor, by: Tensor, k: int) -> Tensor:
    """`values` where `by` is one of the k largest of its last axis, 0 elsewhere; of equals, the lowest index first."""
    edge = torch.topk(by, k, dim=-1).values[..., -1:]
    above, level = by > edge, by == edge
    room = k - above.sum(-1, keepdim=True)
    return torch.where(above | (level & (level.cumsum(-1) <= room)), values, 0.0)


class Structure(torch.nn.Module):
    """The weights as they were trained, and the forward pass that finds the codes."""

    def __init__(self, settings: Mapping[str, Any], weights: Mapping[str, Tensor]):
        super().__init__()
        check(settings, weights)
        self.settings = dict(settings)
        frozen = {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in weights.items()}
        self.weights = torch.nn.ParameterDict(frozen)

    def encoders(self) -> list[Tensor]:
        """[router_enc [E, D], down [E, S, D], atom_enc [E, A, S]]; a tied one is its decoder."""
        pairs = {"router_enc": "router_dec", "down": "up", "atom_enc": "atom_dec"}
        return [self.weights[enc if enc in self.weights else dec] for enc, dec in pairs.items()]

    def normalised(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """x' and the scale by which the token's codes are multiplied."""
        moved, rule = times(x - self.weights["shift"], self.weights["matrix"]), self.settings["token_scale"]
        if rule is None:
            return moved, 1.0
        norm = torch.linalg.vector_norm(moved, dim=-1, keepdim=True) + rule["eps"]
        scale = torch.where(norm > 0, norm, 1.0) * rule["factor"]
        return moved / scale, scale

    def sparsified(self, slot: str, pre: Tensor) -> Tensor:
        """Pre-activations [..., n] -> codes [..., n]: what the rule's namesake in jhsae.sparsify does in evaluation."""
        rule = self.settings[slot]
        match rule["rule"]:
            case "ReLU":
                return pre.relu()
            case "JumpReLU":
                return torch.where(pre > self.weights[f"{slot}_threshold"], pre, 0.0)
            case "TopK":
                return kept(pre.relu(), pre.relu(), rule["k"])
            case "BestAtoms":  # of one expert; `forward` compares those of a token
                return kept(pre.relu(), pre.relu(), 1)
            case "OffsetTopK":
                active = torch.where(pre >= rule["offset"], pre, 0.0)
                return kept(active, active, rule["k"])
            case "LeakyOffsetTopK":
                active = torch.where(pre >= rule["offset"], pre, rule["slope"] * pre)
                return kept(active, active, rule["k"])
            case "GumbelTopK":
                return kept(pre.relu(), pre, rule["k"])
            case "BinaryGumbelTopK":
                return kept(torch.ones_like(pre), pre, rule["k"])
        raise AssertionError("`check` lets no other rule pass")

    def forward(self, x: Tensor) -> Tensor:
        """Codes [batch, F] of tokens [batch, D], in the units of the dictionary as trained, times the token's scale."""
        router_enc, down, atom_enc = self.encoders()
        b_enc, b_atom, b_dec = map(self.weights.get, ("b_enc", "b_atom", "b_dec"))
        inside, scale = self.normalised(x)
        centred = inside if b_dec is None or not self.settings["apply_b_dec_to_input"] else inside - b_dec
        pre = centred @ router_enc.T
        parents = self.sparsified("route", pre if b_enc is None else pre + b_enc)
        child_in = centred
        if self.settings["child_input"] == "Residual":
            coarse = parents @ self.weights["router_dec"]
            child_in = inside - (coarse if b_dec is None else coarse + b_dec)
        # An inactive expert has no active atoms, so only (token, expert) pairs that are active are visited.
        children = parents.new_zeros(*parents.shape, atom_enc.shape[1])
        tokens, experts = parents.nonzero(as_tuple=True)
        step = max(1, GATHERED // down[0].numel())
        for t, e in zip(tokens.split(step), experts.split(step), strict=True):
            hidden = torch.einsum("nd,nsd->ns", child_in[t], down[e])
            child_pre = torch.einsum("ns,nas->na", hidden, atom_enc[e])
            child_pre = child_pre if b_atom is None else child_pre + b_atom[e]
            children[t, e] = self.sparsified("pick", child_pre)
        if self.settings["pick"]["rule"] == "BestAtoms":
            best, keep = children.amax(-1), min(self.settings["pick"]["keep"], children.shape[1])
            children = torch.where((kept(best, best, keep) > 0)[..., None], children, 0.0)
        if self.settings["child_scale"] == "ScaledByParent":
            children = children * parents[..., None]
        return torch.cat([parents, children.flatten(-2)], dim=-1) * scale

    @torch.no_grad()
    def flattened(self) -> dict[str, Tensor]:
        """W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D] and norms [F], in the units of the language model.

        f = `forward` times `norms`. ``x @ W_enc + b_enc`` is f before sparsification, but for two things that no flat
        encoder can do: atoms that read the residual, and a scale per token (then f = scale * (x' @ W_enc + b_enc)).
        A row of zeros stays one, with norm 1, so that L0 does not change.
        """
        w = {name: tensor.float() for name, tensor in self.weights.items()}
        router_enc, down, atom_enc = (tensor.float() for tensor in self.encoders())
        zero, matrix = router_enc.new_zeros, w["matrix"]
        (experts, embed), atoms = router_enc.shape, atom_enc.shape[1]
        rows = torch.cat([w["router_dec"], torch.einsum("eas,esd->ead", w["atom_dec"], w["up"]).flatten(0, 1)])
        rows = times(rows, w["inverse"])
        norms = torch.linalg.vector_norm(rows, dim=-1)
        norms = torch.where(norms > 0, norms, 1.0)
        reads = torch.cat([router_enc, torch.einsum("eas,esd->ead", atom_enc, down).flatten(0, 1)])
        bias = torch.cat([w.get("b_enc", zero(experts)), w.get("b_atom", zero(experts, atoms)).flatten()])
        b_dec = w.get("b_dec", zero(embed))
        if self.settings["apply_b_dec_to_input"]:
            bias = bias - reads @ b_dec
        reads = times(reads, matrix.T if matrix.ndim == 2 else matrix)
        found = {
            "W_enc": (reads * norms[:, None]).T.contiguous(),
            "b_enc": (bias - reads @ w["shift"]) * norms,
            "W_dec": rows / norms[:, None],
            "b_dec": times(b_dec, w["inverse"]) + w["shift"],
            "norms": norms,
        }
        return {name: tensor.to(self.weights["router_dec"].dtype) for name, tensor in found.items()}


class HSAE(Exported):
    """The H-SAE of an exported folder; W_enc and b_enc are a flat view of the weights that `encode` reads."""

    computes = Structure
