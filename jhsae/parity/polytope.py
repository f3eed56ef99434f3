"""PolytopeSAE recomputed: its geometry, its estimators, and its model in evaluation mode.

The original stores decoders as columns; ours are rows. Its penalties use the unembedding side of the metric.

Sigma and its inverse root are recomputed from the unembedding. What follows from them is recomputed with the file's
own root: the reference took it in float32, about 3e-6 from the float64 root, which an inner product enlarges to 1e-5.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae.errors import UserError
from jhsae.losses import (
    BiOrthogonalityRawSum,
    CausalOrthogonalityMinusParent,
    MeanL1Children,
    MeanL1Parents,
    Objective,
    ParentsOnly,
    SquaredError,
)
from jhsae.metric import Whitened, causal_absolute_ridge
from jhsae.parity.golden import FORWARD, GRADIENT, Golden, Row, compare, group, sizes, whole_number
from jhsae.sae import Context, Forward, HierarchicalSAE
from jhsae.sparsify import BinaryGumbelTopK
from jhsae.teacher import original

L1, BIORTH, CAUSAL, RIDGE = 1e-3, 1e-3, 3e-4, 0.05
GEOMETRY = {"geometry/unembedding": "vocabulary embed", "geometry/whitening": "embed embed"}
GEOMETRY |= {"geometry/a": "pairs embed", "geometry/b": "pairs embed"}
CONCEPTS = {"geometry/whitening": "embed embed", "lda/pos": "positive embed", "lda/neg": "negative embed"}
CONCEPTS |= {"lda/child_pos": "children tokens embed"}
MODEL = {
    "model/router_encoder": "experts embed",
    "model/router_encoder_bias": "experts",
    "model/router_decoder": "embed experts",
    "model/decoder_bias": "embed",
    "model/down": "experts sub embed",
    "model/up": "experts embed sub",
    "model/child_encoder": "experts atoms sub",
    "model/child_encoder_bias": "experts atoms",
    "model/child_decoder": "experts sub atoms",
    "geometry/whitening": "embed embed",
    "x": "batch embed",
}
# the original's name, ours, and whether its last two axes are swapped
LEAVES = (
    ("router_encoder", "router_enc", False),
    ("router_encoder_bias", "b_enc", False),
    ("router_decoder", "router_dec", True),
    ("decoder_bias", "b_dec", False),
    ("down", "down", False),
    ("up", "up", True),
    ("child_encoder", "atom_enc", False),
    ("child_encoder_bias", "b_atom", False),
    ("child_decoder", "atom_dec", True),
)


def rows(arrays: Golden) -> list[Row]:
    """Every quantity of a ``polytope`` golden file."""
    axes = [sizes(arrays, shapes) for shapes in (GEOMETRY, CONCEPTS, MODEL)][-1]
    metric = Whitened(jnp.asarray(group(arrays, "geometry")["whitening"]))
    return [*_geometry(metric, arrays), *_estimators(metric, arrays), *_model(metric, arrays, axes)]


def _geometry(metric: Whitened, arrays: Golden) -> list[Row]:
    golden = group(arrays, "geometry")
    geometry = causal_absolute_ridge(golden["unembedding"], RIDGE)
    a, b = jnp.asarray(golden["a"]), jnp.asarray(golden["b"])
    cosine = metric.inner(a, b) / (metric.norm(a) * metric.norm(b))
    values = {
        "sigma": geometry.sigma,
        "whitening": geometry.unembedding.matrix,
        "inner": metric.inner(a, b),
        "norm_a": metric.norm(a),
        "angle_deg": jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1))),
    }
    return [compare(f"geometry/{name}", np.asarray(value), golden[name], FORWARD) for name, value in values.items()]


def _estimators(metric: Whitened, arrays: Golden) -> list[Row]:
    golden = group(arrays, "lda")
    parent = original.lda_direction(golden["pos"], golden["neg"], metric)
    children = np.stack([original.lda_direction(c, golden["neg"], metric) for c in golden["child_pos"]])
    deltas = original.child_deltas(children, parent, metric)
    basis = original.subspace_basis(deltas, 2)
    values = {
        "raw_direction": original.lda_raw_direction(golden["pos"], golden["neg"], metric),
        "parent_vector": parent,
        "child_vectors": children,
        "child_deltas": deltas,
        "subspace_projection": basis.T @ basis,
    }
    return [compare(f"lda/{name}", value, golden[name], FORWARD) for name, value in values.items()]


def _model(metric: Whitened, arrays: Golden, axes: dict[str, int]) -> list[Row]:
    sae, x = _sae(arrays, axes), jnp.asarray(arrays["x"])
    golden = group(arrays, "eval")
    forward = sae.forward(x, Context())
    objective = _objective(metric)
    _, terms = objective(sae, forward, 0)
    values = {
        "parent_codes": forward.codes.parents.dense(),
        "child_codes": _dense_children(forward, sae),
        "x_hat": forward.x_hat,
        "reconstruction_loss": terms["reconstruction"],
        "top_level_recon_loss": ParentsOnly("mean")(sae, forward),
        "l1_parent": L1 * MeanL1Parents()(sae, forward),
        "l1_child": L1 * MeanL1Children()(sae, forward),
        "biorth_penalty": BIORTH * terms["biorthogonality"],
        "causal_orthogonality_penalty": CAUSAL * terms["causal_orthogonality"],
    }
    found = [compare(f"eval/{name}", np.asarray(v), golden[name], FORWARD) for name, v in values.items()]
    return [*found, *_gradients(sae, objective, x, arrays)]


def _sae(arrays: Golden, axes: dict[str, int]) -> HierarchicalSAE:
    model, k = group(arrays, "model"), whole_number(arrays, "meta/k", axes["experts"])
    sae = HierarchicalSAE(
        axes["embed"],
        axes["experts"],
        axes["sub"],
        axes["atoms"],
        BinaryGumbelTopK(k, temperature=1.0),  # the temperature is read only in training
        BinaryGumbelTopK(1, temperature=1.0),
        biases=("encoder", "decoder"),
        apply_b_dec_to_input=False,
        key=jax.random.key(0),
    )
    params = [jnp.asarray(np.swapaxes(model[t], -1, -2) if swap else model[t]) for t, _, swap in LEAVES]
    return eqx.tree_at(lambda s: [getattr(s, ours) for _, ours, _ in LEAVES], sae, params)


def _objective(metric: Whitened) -> Objective:
    terms = {
        "reconstruction": SquaredError("mean"),
        "biorthogonality": BiOrthogonalityRawSum(),
        "causal_orthogonality": CausalOrthogonalityMinusParent(metric),
    }
    return Objective(terms, {"biorthogonality": BIORTH, "causal_orthogonality": CAUSAL})


def _dense_children(forward: Forward, sae: HierarchicalSAE) -> Float[Array, "batch experts atoms"]:
    dense = forward.codes.dense()[:, sae.experts :]
    return dense.reshape(len(dense), sae.experts, sae.atoms)


def _gradients(sae: HierarchicalSAE, objective: Objective, x: Float[Array, "batch embed"], arrays: Golden) -> list[Row]:
    params, static = eqx.partition(sae, eqx.is_inexact_array)

    def loss(params: HierarchicalSAE) -> Float[Array, ""]:
        model = eqx.combine(params, static)
        return objective(model, model.forward(x, Context()), 0)[0]

    grads, golden = jax.jit(jax.grad(loss))(params), group(arrays, "grad")
    ours = {t: getattr(grads, o).swapaxes(-1, -2) if swap else getattr(grads, o) for t, o, swap in LEAVES}
    if unknown := sorted(golden.keys() - ours.keys()):
        raise UserError(f"the golden file has 'grad/{unknown[0]}', expected one of {', '.join(ours)}")
    return [compare(f"grad/{name}", np.asarray(ours[name]), golden[name], GRADIENT) for name in golden]
