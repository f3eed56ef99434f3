"""A pursuit of any depth trains and encodes on eight devices as on one."""

import jax
import numpy as np
import pytest
import runs

import jhsae
from jhsae.constraint import AncestorsOut
from jhsae.parallel.mesh import MeshShape
from jhsae.resampling import FillEmpty, MergeAlike, PromoteAlike, RemoveContained, RestartDead, Several
from jhsae.sae import PursuitSAE, Screened
from jhsae.sparsify import ExactL0, MeanL0

SAES = {
    "flat": ((24,), ExactL0(3, 1), {}, [(8, 1)]),
    "two, screened": ((8, 3), MeanL0(3.0), {"candidates": Screened(2, 4)}, [(8, 1)]),
    "three": ((8, 3, 2), MeanL0(3.0), {"most_children": 1}, [(8, 1), (4, 2)]),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", SAES)
def test_three_steps_and_codes_are_equal_on_eight_devices(name):
    levels, budget, parts, shapes = SAES[name]
    x, rows = runs.activations(128), {}
    for shape in (None, *shapes):
        mesh = shape and MeshShape(*shape)
        sae = PursuitSAE(runs.EMBED, levels, budget, key=jax.random.key(0), **parts)
        trained, metrics = jhsae.fit(sae, x, steps=3, batch=64, log_every=1, mesh=mesh)
        rows[shape] = metrics, np.asarray(trained.encode(x).dense()), np.asarray(trained.rows)
    (want, codes, dictionary) = rows.pop(None)
    for got, own, own_rows in rows.values():
        for a, b in zip(got, want, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["l0"] == pytest.approx(b["l0"], rel=1e-6)
        np.testing.assert_allclose(own_rows, dictionary, atol=1e-5)
        np.testing.assert_allclose(own, codes, atol=1e-5 * codes.max())


def test_parts_that_change_the_forest_do_so_on_eight_devices_as_on_one():
    """At every step, with bounds at which rows of this small forest are removed, promoted and filled."""
    x, rows = runs.activations(128), {}
    parts = [
        RestartDead(1, 3),
        RemoveContained(0.3, every=1, until=3),
        PromoteAlike(0.3, 0.9, every=1, until=3),
        FillEmpty(every=1, until=3),
        MergeAlike(0.6, every=1, until=3),
    ]
    for shape in (None, (4, 2)):
        sae = PursuitSAE(runs.EMBED, (8, 3, 2), MeanL0(6.0), filled=2, key=jax.random.key(0))
        mesh = shape and MeshShape(*shape)
        words = {"steps": 3, "batch": 64, "resampling": Several(parts), "constraint": AncestorsOut()}
        rows[shape] = np.asarray(jhsae.fit(sae, x, mesh=mesh, **words)[0].rows)
    assert np.any(rows[None][-48:], axis=1).any()  # a level that was empty
    np.testing.assert_allclose(rows[4, 2], rows[None], atol=1e-5)
