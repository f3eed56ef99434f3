"""Orthogonality: planted orthogonal children lie below the null, random ones do not, dead atoms do not count."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import evals
from jhsae.metric import Euclidean, Whitened
from jhsae.sae import mixture_of_experts_v2

EXPERTS, SUB, ATOMS, EMBED = 30, 2, 3, 24


@pytest.fixture(scope="module")
def sae():
    return mixture_of_experts_v2(EMBED, EXPERTS, SUB, ATOMS, 2, key=jax.random.key(0))


def planted(sae, metric):
    """The same SAE with every `up` row made orthogonal to its expert's decoder row in `metric`."""
    normal = metric.dual(sae.router_dec)
    along = jnp.einsum("esd,ed->es", sae.up, normal) / jnp.sum(sae.router_dec * normal, -1)[:, None]
    return eqx.tree_at(lambda s: s.up, sae, sae.up - along[..., None] * sae.router_dec[:, None])


def test_planted_orthogonality_is_found_in_its_own_metric_alone(sae):
    metric = Whitened(jax.random.normal(jax.random.key(1), (EMBED, EMBED)))
    alive = np.ones(EXPERTS * (1 + ATOMS))
    here = evals.orthogonality(planted(sae, metric), metric, alive)
    there = evals.orthogonality(planted(sae, metric), Euclidean(), alive)
    assert here["parent_child_off_90"] < 0.01 < 3 < here["parent_child_off_90_null"]
    assert here["parent_child_z"] < -5
    assert there["parent_child_off_90"] > 3


def test_random_children_look_like_the_null(sae):
    found = evals.orthogonality(sae, Euclidean(), np.ones(EXPERTS * (1 + ATOMS)))
    assert abs(found["parent_child_z"]) < 4
    assert found["parent_child_off_90"] == pytest.approx(found["parent_child_off_90_null"], rel=0.5)


def test_dead_atoms_do_not_count(sae):
    frequency = np.ones(EXPERTS * (1 + ATOMS))
    frequency[EXPERTS + 5 :] = 0
    assert evals.orthogonality(sae, Euclidean(), frequency)["live_atoms"] == 5


def test_what_has_no_direction_has_no_angle(sae):
    alive = np.ones(EXPERTS * (1 + ATOMS))
    for name in ("router_dec", "atom_dec"):
        without = eqx.tree_at(lambda s, name=name: getattr(s, name), sae, getattr(sae, name).at[0].set(0.0))
        dead = alive.copy()
        dead[EXPERTS : EXPERTS + ATOMS] = 0  # the atoms of expert 0
        found, expected = (evals.orthogonality(without, Euclidean(), frequency) for frequency in (alive, dead))
        assert found["parent_child_off_90_mean"] == expected["parent_child_off_90_mean"] > 0
