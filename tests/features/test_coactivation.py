"""Links between parents and atoms equal NumPy on the dense codes, and go both ways."""

import numpy as np
import pytest
from held_out import ATOMS, EXPERTS, dense_codes, harvested, saes

from jhsae.data import UnitNorm
from jhsae.features.coactivation import co_activation
from jhsae.features.firings import whole_sequences
from jhsae.features.spill import spilled


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return harvested(tmp_path_factory.mktemp("held_out"))[0]


@pytest.fixture(params=["tree", "dense_tree"])
def found(request, store, tmp_path):
    """The links of an SAE whose atom 5 (and more) never fires, and its dense codes [tokens, features]."""
    sae = saes()[request.param]
    codes = spilled(sae, UnitNorm(), whole_sequences(store), [0, 7, EXPERTS, sae.features], tmp_path)
    index = store.index(0, store.rows)
    dense, _ = dense_codes(sae, UnitNorm(), store)
    return co_activation(codes, sae.tree), np.float64(dense[index[:, 0], index[:, 1]])


def test_pearson_and_cosine_are_those_of_the_codes(found):
    links, dense = found
    compared = 0
    for parent in range(EXPERTS):
        p = dense[:, parent]
        for a in range(ATOMS):
            atom = EXPERTS + parent * ATOMS + a
            own = dense[:, atom]
            if not own.any():
                assert links.pearson[atom] == links.cosine[atom] == 0
                continue
            compared += 1
            assert links.pearson[atom] == pytest.approx(np.corrcoef(p, own)[0, 1], abs=1e-5)
            cosine = p @ own / np.linalg.norm(p) / np.linalg.norm(own)
            assert links.cosine[atom] == pytest.approx(cosine, abs=1e-5)
    assert compared > EXPERTS


def test_links_go_both_ways_between_a_parent_and_its_atoms_that_fired(found):
    links, dense = found
    fired = dense[:, EXPERTS:].any(axis=0)
    for parent in range(EXPERTS):
        listed = links.down(parent)
        assert set(listed.indices) == set(np.flatnonzero(fired[parent * ATOMS : (parent + 1) * ATOMS]) + parent * ATOMS)
        assert listed.pearson == sorted(listed.pearson, reverse=True)
        for atom, pearson, cosine in zip(*listed, strict=True):
            assert links.up(atom) == ([parent], [pearson], [cosine])
    for atom in range(EXPERTS * ATOMS):
        assert links.up(atom).indices == ([atom // ATOMS] if fired[atom] else [])
