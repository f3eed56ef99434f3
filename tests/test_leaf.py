from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

from jhsae.errors import UserError
from jhsae.leaf import Unit, describe, matching
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.sparsify import TopK


def hsae(**kwargs):
    return HierarchicalSAE(8, 6, 2, 3, TopK(2), TopK(1), key=jax.random.key(0), **kwargs)


def facts(module):
    return {leaf.path: (leaf.axes, leaf.unit) for leaf in jax.tree.leaves(describe(module))}


class Threshold(eqx.Module):
    log_threshold: Float[Array, "features"]


class Owner(eqx.Module):
    """A part that owns parameters, nested and in a tuple, like a sparsifier with learned thresholds."""

    part: Threshold
    parts: tuple[Threshold, ...]
    wide: Annotated[Float[Array, "experts embed sub"], Unit("embed")]
    absent: Float[Array, "embed"] | None = None
    size: int = eqx.field(static=True, default=3)


def test_the_facts_of_a_hierarchical_sae():
    assert facts(hsae(biases=("encoder", "decoder"))) == {
        "router_enc": (("experts", "embed"), None),
        "router_dec": (("experts", "embed"), -1),
        "down": (("experts", "sub", "embed"), None),
        "up": (("experts", "sub", "embed"), None),
        "atom_enc": (("experts", "atoms", "sub"), None),
        "atom_dec": (("experts", "atoms", "sub"), -1),
        "b_enc": (("experts",), None),
        "b_atom": (("experts", "atoms"), None),
        "b_dec": (("embed",), None),
    }


def test_the_facts_of_a_flat_sae():
    assert facts(FlatSAE(8, 12, TopK(2), key=jax.random.key(0))) == {
        "W_enc": (("features", "embed"), None),
        "W_dec": (("features", "embed"), -1),
        "b_enc": (("features",), None),
        "b_dec": (("embed",), None),
    }


def test_an_absent_array_has_no_leaf():
    assert set(facts(hsae(tie=("router", "projectors", "atoms")))) == {"router_dec", "up", "atom_dec"}


def test_nested_parts_and_inner_unit_axes_are_described():
    owner = Owner(Threshold(jnp.zeros(4)), (Threshold(jnp.zeros(2)), Threshold(jnp.zeros(2))), jnp.zeros((2, 5, 3)))
    assert facts(owner) == {
        "part.log_threshold": (("features",), None),
        "parts.0.log_threshold": (("features",), None),
        "parts.1.log_threshold": (("features",), None),
        "wide": (("experts", "embed", "sub"), -2),
    }


def test_shapes_alone_can_be_described():
    assert facts(eqx.filter_eval_shape(hsae)) == facts(hsae())


def test_every_axis_is_as_long_as_its_name_says():
    sizes = {"experts": 6, "embed": 8, "sub": 2, "atoms": 3}
    sae = hsae(biases=("encoder", "decoder"))
    for leaf, array in zip(jax.tree.leaves(describe(sae)), jax.tree.leaves(sae), strict=True):
        assert array.shape == tuple(sizes[axis] for axis in leaf.axes), leaf.path


def test_globs_mark_the_leaves_they_match_and_no_others():
    marked = matching(hsae(), ["atom_*", "up"])
    assert marked.atom_enc is True and marked.atom_dec is True and marked.up is True
    assert marked.router_enc is False and marked.router_dec is False and marked.down is False
    assert marked.b_dec is None
    assert jax.tree.structure(marked) == jax.tree.structure(hsae())


def test_a_nested_leaf_can_be_matched_by_its_path():
    owner = Owner(Threshold(jnp.zeros(4)), (), jnp.zeros((2, 5, 3)))
    assert matching(owner, ["part.*"]).part.log_threshold is True
    assert matching(owner, ["part.*"]).wide is False


@pytest.mark.parametrize("pattern", ["router", "Router_dec", "b_dec", "w*"])
def test_a_pattern_that_matches_nothing_is_an_error_that_lists_the_paths(pattern):
    with pytest.raises(UserError) as error:
        matching(hsae(), ["up", pattern])
    for part in (f"'{pattern}'", "router_enc", "router_dec", "down", "up", "atom_enc", "atom_dec"):
        assert part in str(error.value)


def test_no_patterns_match_nothing():
    assert not any(jax.tree.leaves(matching(hsae(), [])))
