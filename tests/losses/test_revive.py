import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import saelens
from reference.filled import filled

from jhsae.errors import UserError
from jhsae.losses import AuxK, AuxKNormalized, GhostAtoms, GhostGradients, MatryoshkaAuxK, Objective
from jhsae.sae import DecoderNormUnit, FlatSAE, GatedSAE, HierarchicalSAE
from jhsae.sparsify import TopK
from jhsae.usage import Context

BATCH, EMBED, FEATURES, EXPERTS, ATOMS = 9, 10, 24, 6, 4
WIDTHS = (3, 11)
FLAT = [AuxK(), AuxK(3), AuxKNormalized(), GhostGradients(), MatryoshkaAuxK(WIDTHS)]
X = np.random.default_rng(1).normal(0.3, 1.0, size=(BATCH, EMBED)).astype(np.float32)


def name(part):
    return type(part).__name__


@pytest.fixture(scope="session")
def lens():
    return saelens.load()


@eqx.filter_jit
def run(term, sae, x, dead):
    """The term and its gradient to every parameter."""
    return eqx.filter_value_and_grad(lambda sae: term(sae, sae.forward(x, Context(jax.random.key(0), dead=dead))))(sae)


encode = eqx.filter_jit(lambda sae, x, dead: sae.forward(jnp.asarray(x), Context(jax.random.key(0), dead=dead)))


def flat(**how):
    return filled(lambda: FlatSAE(EMBED, FEATURES, TopK(3), key=jax.random.key(0), **how), scale=0.5)


def tree(**how):
    def make():
        parts = TopK(2), TopK(1)
        return HierarchicalSAE(EMBED, EXPERTS, 3, ATOMS, *parts, biases=("encoder", "decoder"), key=key, **how)

    key = jax.random.key(0)
    return filled(make, scale=0.5)


def mask(kind, size=FEATURES, seed=0):
    return jnp.asarray(saelens.dead_mask(np.random.default_rng(seed), kind, EMBED, size), jnp.float32)


@pytest.mark.few(2)
@pytest.mark.parametrize("unit", [True, False], ids=["rescaled", "plain"])
@pytest.mark.parametrize("architecture", ["topk", "matryoshka_batchtopk"])
def test_equals_saelens_in_value_and_gradients(lens, architecture, unit):
    """For any dead mask: none, all, fewer than k, and levels of a Matryoshka SAE without one dead feature."""
    fixed = {"aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": unit}
    term = AuxK() if architecture == "topk" else MatryoshkaAuxK(WIDTHS)
    if architecture != "topk":
        fixed |= {"matryoshka_widths": [*WIDTHS, FEATURES], "use_matryoshka_aux_loss": True}
    rng = np.random.default_rng(7)
    theirs = saelens.training_sae(lens, rng, architecture, EMBED, FEATURES, **fixed)
    sae, masks = saelens.ours(theirs), [np.asarray(mask(kind)) for kind in saelens.DEAD]
    for dead in [*masks, *(np.arange(FEATURES) < WIDTHS[0],), *(np.arange(FEATURES) >= WIDTHS[1],)]:
        loss = saelens.passed(lens, theirs, X, np.asarray(dead, bool)).losses["auxiliary_reconstruction_loss"]
        value, grads = run(term, sae, X, jnp.asarray(dead, jnp.float32))
        np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
        for key, want in saelens.gradients(theirs, loss).items():
            got, want = saelens.leaf(grads, key), saelens.ours_layout(key, want)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * (1 + np.abs(want).max()), err_msg=key)


def first_dead(pre, dead, k):
    """The k largest pre-activations of dead features, the rest 0, row by row."""
    out = np.zeros(pre.shape)
    for row, values in zip(out, pre, strict=True):
        order = [i for i in np.argsort(-values, kind="stable") if dead[i]][:k]
        row[order] = values[order]
    return out


@pytest.mark.parametrize("kind", saelens.DEAD)
@pytest.mark.parametrize("term", [AuxK(3), AuxK(1000), AuxKNormalized()], ids=str)
def test_equals_the_formula_for_any_k(term, kind):
    sae, dead = flat(), np.asarray(mask(kind))
    out = encode(sae, X, None)
    e, pre, rows = (np.asarray(a, np.float64) for a in (X - out.x_hat, out.pre, sae.W_dec))
    codes = first_dead(pre, dead, term.k or EMBED // 2)
    if isinstance(term, AuxK):
        want = min(dead.sum() / term.k, 1.0) * ((e - codes @ rows) ** 2).sum(1).mean()
    else:
        error = ((e - np.maximum(codes, 0.0) @ rows) ** 2).sum()
        want = error / ((e - e.mean(0)) ** 2).sum() if dead.any() else 0.0
    np.testing.assert_allclose(run(term, sae, X, jnp.asarray(dead))[0], want, rtol=1e-4)


def test_normalized_gradients_equal_autograd_of_the_formula():
    torch = pytest.importorskip("torch")
    sae, dead = flat(), np.asarray(mask("some"))
    p = {n: torch.tensor(np.asarray(getattr(sae, n)), requires_grad=True) for n in ("W_enc", "W_dec", "b_enc", "b_dec")}
    e = torch.tensor(np.array(X - encode(sae, X, None).x_hat))
    pre = (torch.tensor(X) - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    values, indices = torch.where(torch.tensor(dead) > 0, pre.relu(), -torch.inf).topk(EMBED // 2)
    codes = torch.zeros_like(pre).scatter(-1, indices, values)
    ((e - codes @ p["W_dec"]).pow(2).sum() / (e - e.mean(0)).pow(2).sum()).backward()
    _, grads = run(AuxKNormalized(), sae, X, jnp.asarray(dead))
    for key, tensor in p.items():
        np.testing.assert_allclose(getattr(grads, key), tensor.grad, rtol=1e-4, atol=1e-5, err_msg=key)


def ghost_oracle(torch, e, ghost):
    """Anthropic, January 2024: half the residual's norm, the size of the reconstruction loss, both held constant."""
    with torch.no_grad():
        scale = e.norm(dim=1, keepdim=True) / (2 * ghost.norm(dim=1, keepdim=True))
    error = (e - ghost * torch.where(ghost.detach().abs().sum(1, keepdim=True) > 0, scale, 0.0)).pow(2).sum(1).mean()
    return error * (e.pow(2).sum(1).mean() / error).detach()


@pytest.mark.parametrize("unit", [{}, {"code_unit": DecoderNormUnit()}], ids=["plain", "rescaled"])
@pytest.mark.parametrize("kind", ["some", "all", "few"])
def test_ghost_gradients_equal_autograd_of_the_note(kind, unit):
    torch = pytest.importorskip("torch")
    sae, dead = flat(**unit), np.asarray(mask(kind))
    p = {n: torch.tensor(np.asarray(getattr(sae, n)), requires_grad=True) for n in ("W_enc", "W_dec", "b_enc", "b_dec")}
    e = torch.tensor(np.array(X - encode(sae, X, None).x_hat))
    norms = p["W_dec"].norm(dim=1) if unit else torch.ones(FEATURES)
    pre = ((torch.tensor(X) - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]) * norms
    alive = torch.tensor(dead) > 0
    ghost = pre[:, alive].exp() @ (p["W_dec"] / norms[:, None])[alive]
    loss = ghost_oracle(torch, e, ghost)
    loss.backward()
    value, grads = run(GhostGradients(), sae, X, jnp.asarray(dead))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    np.testing.assert_allclose(value, (e**2).sum(1).mean(), rtol=1e-4)
    for key, tensor in p.items():
        np.testing.assert_allclose(getattr(grads, key), tensor.grad, rtol=1e-3, atol=1e-5, err_msg=key)


def tree_mask():
    """Every third atom is dead, and one expert."""
    dead = np.zeros(EXPERTS * (1 + ATOMS), np.float32)
    dead[EXPERTS::3], dead[1] = 1.0, 1.0
    return dead


def test_ghost_atoms_equal_autograd_of_the_note():
    torch = pytest.importorskip("torch")
    sae, dead = tree(), tree_mask()
    out = encode(sae, X, None)
    names = ("down", "up", "atom_enc", "atom_dec", "b_atom", "b_dec")
    p = {n: torch.tensor(np.asarray(getattr(sae, n)), requires_grad=True) for n in names}
    ghost = []
    for token, experts, values in zip(X, out.codes.parents.indices, out.codes.parents.values, strict=True):
        parts = [torch.zeros(EMBED)]
        for e, value in zip(experts.tolist(), values.tolist(), strict=True):
            pre = p["atom_enc"][e] @ (p["down"][e] @ (torch.tensor(token) - p["b_dec"])) + p["b_atom"][e]
            gone = torch.tensor(dead[EXPERTS + e * ATOMS : EXPERTS + (e + 1) * ATOMS] * (value != 0))
            parts.append((pre.exp() * gone) @ p["atom_dec"][e] @ p["up"][e])
        ghost.append(sum(parts))
    loss = ghost_oracle(torch, torch.tensor(np.array(X - out.x_hat)), torch.stack(ghost))
    loss.backward()
    value, grads = run(GhostAtoms(), sae, X, jnp.asarray(dead))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    for key, tensor in p.items():
        np.testing.assert_allclose(getattr(grads, key), tensor.grad, rtol=1e-3, atol=1e-5, err_msg=key)


def test_ghost_atoms_reach_the_dead_atoms_of_selected_experts_alone():
    """Also those that have never fired; living atoms, the router and its biases feel nothing."""
    sae, dead = tree(), tree_mask()
    _, grads = run(GhostAtoms(), sae, X, jnp.asarray(dead))
    gone = dead[EXPERTS:].reshape(EXPERTS, ATOMS) > 0
    parents = encode(sae, X, None).codes.parents
    chosen = np.isin(np.arange(EXPERTS), np.asarray(parents.indices)[np.asarray(parents.values) > 0])
    for leaf in (grads.atom_enc, grads.atom_dec, grads.b_atom[..., None]):
        np.testing.assert_array_equal(np.abs(leaf).max(-1) > 0, gone & chosen[:, None])
    for leaf in (grads.router_enc, grads.router_dec, grads.b_enc):
        np.testing.assert_array_equal(leaf, 0.0)
    assert (gone & chosen[:, None]).any()


@pytest.mark.parametrize("term", FLAT, ids=name)
def test_living_features_get_no_gradient(term):
    dead = mask("some")
    _, grads = run(term, flat(), X, dead)
    for leaf in (grads.W_enc, grads.W_dec, grads.b_enc[:, None]):
        reached = np.abs(leaf).max(1) > 0
        assert reached.any() and not reached[np.asarray(dead) == 0].any()


@pytest.mark.parametrize("term", [*FLAT, GhostAtoms()], ids=name)
def test_where_nothing_is_dead_it_is_zero(term):
    sae = tree() if isinstance(term, GhostAtoms) else flat()
    value, grads = run(term, sae, X, jnp.zeros(sae.features))
    assert value == 0.0 and not any(np.any(g) for g in jax.tree.leaves(grads))


def test_in_evaluation_nothing_is_dead():
    value = eqx.filter_jit(lambda term, sae, forward: term(sae, forward))
    for sae, term in ((flat(), AuxKNormalized()), (flat(), GhostGradients()), (tree(), GhostAtoms())):
        assert value(term, sae, encode(sae, X, None)) == 0.0


@pytest.mark.parametrize("term", [*FLAT, GhostAtoms()], ids=name)
def test_pre_activations_in_the_hundreds_are_finite(term):
    """Of the living and of the dead: exp(100) is infinite in float32, and an infinity times 0 is no number."""
    sae = tree() if isinstance(term, GhostAtoms) else flat()
    dead = jnp.asarray(tree_mask()) if isinstance(term, GhostAtoms) else mask("some")
    for factor in (300.0, -300.0):
        value, grads = run(term, sae, factor * X, dead)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, grads)))
        assert any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("term", [AuxK(), GhostGradients()], ids=name)
def test_of_a_hierarchical_sae_they_read_the_experts(term):
    sae, dead = tree(), jnp.asarray(tree_mask())
    value, grads = run(term, sae, X, dead)
    reached = np.abs(grads.router_enc).max(1) > 0
    np.testing.assert_array_equal(reached, np.asarray(dead[:EXPERTS]) > 0)
    assert np.isfinite(value)


def test_matryoshka_levels_without_the_last_are_the_same_and_one_level_is_auxk():
    sae = flat()
    forward = encode(sae, X, mask("some"))
    value = eqx.filter_jit(lambda term: term(sae, forward))
    np.testing.assert_array_equal(value(MatryoshkaAuxK(WIDTHS)), value(MatryoshkaAuxK((*WIDTHS, FEATURES))))
    for widths in ((), (FEATURES,)):
        np.testing.assert_allclose(value(MatryoshkaAuxK(widths)), value(AuxK()), rtol=1e-5)


def test_an_sae_that_does_not_fit_is_refused():
    dead, gated = mask("some"), GatedSAE(EMBED, FEATURES, key=jax.random.key(0))
    with pytest.raises(UserError, match=r"GhostAtoms, needs a HierarchicalSAE, got a FlatSAE; write .*GhostGradients"):
        Objective({"ghosts": GhostAtoms()}).check(flat())
    for sae in (tree(), gated):
        with pytest.raises(UserError, match=r"MatryoshkaAuxK, needs a FlatSAE, got a .*; write jhsae.losses.AuxK"):
            Objective({"aux": MatryoshkaAuxK(WIDTHS)}).check(sae)
    with pytest.raises(UserError, match=f"last of widths is 99, but the SAE has {FEATURES} features"):
        run(MatryoshkaAuxK((3, 99)), flat(), X, dead)
    for widths in ((3, 3), (5, 2), (0, 4)):
        with pytest.raises(ValueError, match=r"growing|widths.0 is 0, expected at least 1"):
            MatryoshkaAuxK(widths)
