import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae.constraint import AncestorsOut, NearOrthonormal, ProjectAndRenormalize, Renormalize, Unconstrained
from jhsae.errors import UserError
from jhsae.metric import Euclidean, Whitened
from jhsae.sae import FlatSAE, HierarchicalSAE, PursuitSAE
from jhsae.sparsify import Threshold, TopK

EMBED = 6
MATRIX = np.random.default_rng(0).normal(size=(EMBED, EMBED)) + 2 * np.eye(EMBED)
METRICS = [(Euclidean(), np.eye(EMBED)), (Whitened(jnp.asarray(MATRIX, jnp.float32)), MATRIX)]
MARKED, UNMARKED = ("router_dec", "atom_dec"), ("router_enc", "down", "up", "atom_enc", "b_enc", "b_atom", "b_dec")
with_metric = pytest.mark.parametrize("metric, matrix", METRICS, ids=["euclidean", "whitened"])


def new(seed=0):
    biases = ("encoder", "decoder")

    def make():
        return HierarchicalSAE(EMBED, 4, 3, 2, TopK(1), TopK(1), biases=biases, key=jax.random.key(0))

    return filled(make, seed)


def norms(sae, matrix):
    """Norms of every constrained row: the embed axis in the metric, the axis inside a subspace in none."""
    inside = np.linalg.norm(np.asarray(sae.atom_dec, np.float64), axis=-1)
    return np.linalg.norm(np.asarray(sae.router_dec, np.float64) @ matrix.T, axis=-1), inside


def directional(sae, along, matrix):
    """The derivative of every constrained row's norm when the parameters move along `along`."""

    def moved(t):
        return jax.tree.map(lambda p, a: np.asarray(p, np.float64) + t * np.asarray(a, np.float64), sae, along)

    up, down = norms(moved(1e-6), matrix), norms(moved(-1e-6), matrix)
    return np.concatenate([((u - d) / 2e-6).ravel() for u, d in zip(up, down, strict=True)])


@with_metric
def test_a_projected_gradient_changes_no_norm(metric, matrix):
    sae, grads = new(), new(1)
    projected = ProjectAndRenormalize(metric).tangent(grads, sae)
    assert np.abs(directional(sae, grads, matrix)).min() > 1e-3
    np.testing.assert_allclose(directional(sae, projected, matrix), 0.0, atol=1e-5)


@with_metric
def test_the_projection_removes_the_normal_and_nothing_else(metric, matrix):
    sae, grads = new(), new(1)
    projected = ProjectAndRenormalize(metric).tangent(grads, sae)
    for name, gram in (("router_dec", matrix.T @ matrix), ("atom_dec", np.eye(3))):
        removed = np.asarray(getattr(grads, name) - getattr(projected, name), np.float64)
        normal = np.asarray(getattr(sae, name), np.float64) @ gram
        cosine = (removed * normal).sum(-1) / np.linalg.norm(removed, axis=-1) / np.linalg.norm(normal, axis=-1)
        np.testing.assert_allclose(np.abs(cosine), 1.0, atol=1e-5)
    again = ProjectAndRenormalize(metric).tangent(projected, sae)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(projected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@with_metric
@pytest.mark.parametrize("constraint", [ProjectAndRenormalize, Renormalize])
def test_retraction_gives_unit_norm_along_the_same_ray(constraint, metric, matrix):
    sae = new()
    landed = constraint(metric).retract(sae)
    for got, before in zip(norms(landed, matrix), norms(sae, matrix), strict=True):
        np.testing.assert_allclose(got, 1.0, rtol=1e-5)
        assert np.abs(before - 1.0).max() > 0.1
    for name in MARKED:
        ratio = np.asarray(getattr(landed, name)) / np.asarray(getattr(sae, name))
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-4)
        assert (ratio > 0).all()
    for a, b in zip(jax.tree.leaves(constraint(metric).retract(landed)), jax.tree.leaves(landed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("constraint", [ProjectAndRenormalize(), Renormalize(), Unconstrained()])
def test_unmarked_leaves_pass_through_untouched(constraint):
    sae, grads = new(), new(1)
    projected, landed = constraint.tangent(grads, sae), constraint.retract(sae)
    for name in UNMARKED:
        assert getattr(projected, name) is getattr(grads, name), name
        assert getattr(landed, name) is getattr(sae, name), name


def test_renormalize_leaves_gradients_alone_and_free_leaves_everything_alone():
    sae, grads = new(), new(1)
    assert Renormalize().tangent(grads, sae) is grads
    assert Unconstrained().tangent(grads, sae) is grads and Unconstrained().retract(sae) is sae


@with_metric
def test_a_zero_row_stays_zero_and_finite(metric, matrix):
    def zero(s):
        return (s.router_dec, s.atom_dec)

    sae = eqx.tree_at(zero, new(), (new().router_dec.at[1].set(0.0), new().atom_dec.at[2, 1].set(0.0)))
    constraint = ProjectAndRenormalize(metric)
    landed, projected = constraint.retract(sae), constraint.tangent(new(1), sae)
    np.testing.assert_array_equal(landed.router_dec[1], 0.0)
    np.testing.assert_array_equal(landed.atom_dec[2, 1], 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((landed, projected)))
    np.testing.assert_allclose(norms(landed, matrix)[0][[0, 2, 3]], 1.0, rtol=1e-5)


def test_the_decoder_of_a_flat_sae_is_constrained_and_its_encoder_is_not():
    def make():
        return FlatSAE(EMBED, 5, TopK(1), key=jax.random.key(0))

    sae = filled(make)
    landed = ProjectAndRenormalize().retract(sae)
    np.testing.assert_allclose(np.linalg.norm(landed.W_dec, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(landed.W_enc, sae.W_enc)


def test_shared_arrays_of_a_tied_sae_are_constrained_once():
    tie = ("router", "projectors", "atoms")
    sae = filled(lambda: HierarchicalSAE(EMBED, 4, 3, 2, TopK(1), TopK(1), tie=tie, key=jax.random.key(0)))
    landed = ProjectAndRenormalize().retract(sae)
    np.testing.assert_allclose(norms(landed, np.eye(EMBED))[0], 1.0, rtol=1e-5)
    assert landed.router_enc is None and landed.atom_enc is None


def forest(levels=(4, 3, 2)):
    """A pursuit's forest of rows of any length, one of them empty."""
    sae = PursuitSAE(12, levels, Threshold(0.1, 4), key=jax.random.key(0))
    return eqx.tree_at(lambda s: s.rows, sae, 3 * jax.random.normal(jax.random.key(1), sae.rows.shape).at[5].set(0.0))


def test_the_rows_of_a_forest_are_orthogonal_to_their_ancestors_and_of_norm_one():
    """What Gram-Schmidt gives for each row with its ancestors alone; an empty row stays empty."""
    sae = forest()
    got, rows, parents = np.asarray(AncestorsOut().retract(sae).rows), np.asarray(sae.rows, float), sae.latent_parents()
    want = np.zeros_like(rows)
    for row in range(len(rows)):
        want[row], above = rows[row], parents[row]
        while above >= 0:
            want[row] -= (want[row] @ want[above]) * want[above]
            above = parents[above]
        want[row] /= max(np.linalg.norm(want[row]), 1e-12)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not got[5].any() and np.linalg.norm(np.delete(got, 5, 0), axis=1) == pytest.approx(1)
    np.testing.assert_allclose(AncestorsOut().retract(AncestorsOut().retract(sae)).rows, got, atol=1e-6)
    flat = forest((40,))
    np.testing.assert_allclose(AncestorsOut().retract(flat).rows, Renormalize().retract(flat).rows, atol=1e-6)


def test_ancestors_out_leaves_gradients_and_is_unit_norm_for_other_saes():
    sae, grads = new(), new(1)
    assert AncestorsOut().tangent(grads, sae) is grads
    for a, b in zip(*(jax.tree.leaves(c.retract(sae)) for c in (AncestorsOut(), Renormalize())), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_child_that_is_almost_its_parent_is_orthogonal_to_it():
    sae = forest()
    close = eqx.tree_at(lambda s: s.rows, sae, sae.rows.at[4].set(sae.rows[0] + 1e-4 * sae.rows[9]))
    rows = AncestorsOut().retract(close).rows
    assert abs(float(rows[4] @ rows[0])) < 1e-6 and abs(float(jnp.linalg.norm(rows[4])) - 1) < 1e-5


@pytest.mark.parametrize("levels, subspace", [((4, 5), 2), ((3, 4, 6), 3), ((4, 5), 1)])
def test_the_rows_below_a_row_lie_in_a_subspace_and_are_the_best_in_it(levels, subspace):
    """Against the singular value decomposition of each row's children; who has no more than that stays as it was."""
    sae = forest(levels)
    free, got = (np.asarray(AncestorsOut(s).retract(sae).rows, np.float64) for s in (None, subspace))
    start = 0
    for above, block in zip([None, *sae.forest.blocks[:-1]], sae.forest.blocks, strict=True):
        for first in range(block.start, block.end, block.each):
            rows = slice(first, first + block.each)
            if above is None or block.each <= subspace:
                np.testing.assert_allclose(got[rows], free[rows], atol=1e-5)
                continue
            directions = np.linalg.svd(free[rows], full_matrices=False)[2][:subspace]
            want = free[rows] @ directions.T @ directions
            want /= np.maximum(np.linalg.norm(want, axis=1, keepdims=True), 1e-12)
            np.testing.assert_allclose(got[rows], want, atol=1e-4)
            assert np.linalg.matrix_rank(got[rows], tol=1e-4) <= subspace
            np.testing.assert_allclose(got[rows] @ got[sae.forest.parents[first]], 0, atol=1e-5)
        if above is not None and len(levels) > 2:
            break  # the ancestors of a third level differ with the second
        start = block.end
    assert start and not got[5].any()
    np.testing.assert_allclose(AncestorsOut(subspace).retract(AncestorsOut(subspace).retract(sae)).rows, got, atol=1e-4)


def test_subspaces_of_experts_become_orthonormal_apart_from_the_expert():
    """From any start, also far from orthonormal; the fixed point is Loewdin's, without the expert's direction."""
    rows = jax.random.normal(jax.random.key(0), (5, 4, 16)).at[1].multiply(30.0)
    rows = rows.at[2].set(rows[2, :1] + 0.1 * rows[2])  # nearly the same direction four times
    sae = HierarchicalSAE(16, 5, 4, 3, TopK(2), TopK(1), tie=("projectors",), key=jax.random.key(1))
    sae = eqx.tree_at(lambda s: s.up, sae, rows)
    step = jax.jit(NearOrthonormal().retract)
    for _ in range(60):
        sae = step(sae)
    gram = jnp.einsum("esd,etd->est", sae.up, sae.up)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), (5, 4, 4)), atol=1e-3)
    np.testing.assert_allclose(jnp.einsum("esd,ed->es", sae.up, sae.router_dec), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(sae.router_dec, axis=1), 1, rtol=1e-5)
    start = np.asarray(rows[0] - (rows[0] @ sae.router_dec[0])[:, None] * sae.router_dec[0], np.float64)
    both = np.concatenate([start, np.asarray(sae.up[0], np.float64)])
    assert np.linalg.matrix_rank(both, tol=1e-2) == 4, "the subspace moved"


def test_one_step_of_a_projector_that_is_nearly_orthonormal_is_newton_schulz():
    sae = HierarchicalSAE(16, 3, 4, 2, TopK(1), TopK(1), key=jax.random.key(0))
    rows = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (3, 16, 4)))[0].swapaxes(1, 2) * 0.98
    sae = eqx.tree_at(lambda s: s.up, sae, rows)
    got = NearOrthonormal().retract(sae)
    for up, new, parent in zip(np.asarray(rows, float), got.up, np.asarray(got.router_dec, float), strict=True):
        want = 1.5 * up - 0.5 * up @ up.T @ up
        np.testing.assert_allclose(new, want - np.outer(want @ parent, parent), atol=1e-5)
    np.testing.assert_array_equal(got.down, sae.down)


def test_near_orthonormal_is_refused_without_experts():
    with pytest.raises(UserError, match=r"router_dec, and FlatSAE has none; write jhsae\.constraint\.ProjectAnd"):
        NearOrthonormal().retract(FlatSAE(EMBED, 5, TopK(1), key=jax.random.key(0)))
