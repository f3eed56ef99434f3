"""What a config makes: trees, graphs, vectors, generators; and what it refuses."""

import numpy as np
import pytest
import yaml
from small_worlds import config
from test_configs import CONFIGS

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.worlds import (
    ConstantMagnitude,
    ExponentialMagnitudes,
    FoldedNormal,
    LinearProbabilities,
    RandomProbabilities,
    WorldConfig,
    Zipf,
    build_world,
    largest_cosines,
    zipf,
)
from jhsae.worlds.build import make_hierarchy
from jhsae.worlds.config import TreeConfig
from jhsae.worlds.directions import orthogonalize, random_directions, towards_parents

SIZES = {"tiny": 20, "tree_336": 336, "tree_1360": 1360, "irregular_335": 335, "dag_336": 336}


def trees(*values, features=None, seed=0, **more):
    return make_hierarchy(TreeConfig(*values, **more), features, np.random.default_rng(seed))


@pytest.mark.parametrize("name", [*SIZES, "synthsaebench_16k_v2"])
def test_the_configs_have_the_features_of_their_name(name):
    file = CONFIGS / "worlds" / f"{name}.yaml"
    loaded = cfg.load(WorldConfig, file)
    found = make_hierarchy(loaded.trees, loaded.features, np.random.default_rng([loaded.seed, 0]))
    assert found.size == SIZES.get(name, 16_384)
    assert found.is_forest == (name != "dag_336") and {p.name for p in file.parent.iterdir()} == {
        *(f"{known}.yaml" for known in SIZES), "synthsaebench_16k_v2.yaml"
    }  # fmt: skip


def test_regular_trees_are_numbered_level_by_level():
    found = trees(2, 3, 2, exclusive=1.0)
    assert found.size == 26 and found.roots.tolist() == [0, 1]
    assert found.below[0] == (2, 3, 4) and found.below[1] == (5, 6, 7) and found.below[2] == (8, 9, 10)
    assert found.exclusive == frozenset(range(8)) and not found.scaled
    assert np.bincount(found.levels).tolist() == [2, 6, 18]


def test_trees_end_where_features_do_and_the_rest_is_in_none():
    cut = trees(2, 3, 2, features=10)
    assert cut.size == 10 and cut.below[2] == (8, 9) and not cut.below[3]
    rest = trees(2, 3, 1, features=10)
    assert rest.roots.tolist() == [0, 1, 8, 9] and rest.exclusive == {0, 1}
    assert trees(5, 3, 1, features=3).edges == ()
    assert trees(1, 1, 3, exclusive=1.0).exclusive == frozenset()  # an only child has none to exclude


def test_numbers_of_children_shares_of_exclusive_parents_and_second_parents():
    found = trees(10, [2, 6], 2, exclusive=0.5, second_parents=0.25, scale_children=True)
    first = [parents[0] for parents in found.above if parents]
    counts = np.bincount(first)
    assert set(counts[counts > 0]) == {2, 3, 4, 5, 6}
    parents = [i for i, below in enumerate(found.below) if below]
    assert found.scaled == frozenset(parents) and len(found.exclusive) == len(parents) // 2
    two = [i for i, above in enumerate(found.above) if len(above) == 2]
    assert len(two) == (found.size - 10) // 4
    assert all(
        len({found.levels[p] for p in found.above[i]}) == 1 and found.above[i][0] != found.above[i][1] for i in two
    )


def test_orthogonalisation_lowers_the_cosines_and_children_lie_at_their_angle():
    found = trees(4, 3, 2, second_parents=0.3)
    start = random_directions(np.random.default_rng(0), found.size, 48)
    after = orthogonalize(start, 50, 0.01)
    assert largest_cosines(after).mean() < largest_cosines(start).mean() - 0.05
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, rtol=1e-6)
    for cosine in (0.0, 0.3):
        turned = towards_parents(after, found, cosine)
        for i, parents in enumerate(found.above):
            towards = turned[list(parents)].sum(axis=0)
            if parents:
                assert abs(turned[i] @ towards / np.linalg.norm(towards) - cosine) < 1e-5
            above = np.flatnonzero(found.ancestors[i])
            assert cosine or np.abs(turned[above] @ turned[i]).max(initial=0) < 1e-5
        np.testing.assert_allclose(np.linalg.norm(turned, axis=1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="feature 3 has 3 ancestors in 3 dimensions"):
        towards_parents(random_directions(np.random.default_rng(0), 4, 3), trees(1, 1, 3), 0.0)


def test_the_largest_cosine_is_that_of_all_pairs(monkeypatch):
    x = random_directions(np.random.default_rng(0), 30, 5)
    plain = np.abs(x @ x.T) - 2 * np.eye(30)
    np.testing.assert_allclose(largest_cosines(x), plain.max(axis=1), rtol=1e-5)
    monkeypatch.setattr("jhsae.worlds.directions.CHUNK", 210)
    np.testing.assert_allclose(largest_cosines(x), plain.max(axis=1), rtol=1e-5)
    assert largest_cosines(x[:1]).tolist() == [0] and len(largest_cosines(x[:0])) == 0


def test_generators_by_their_ends():
    np.testing.assert_allclose(zipf(6, 0.5, 0.4, 0.02)[[0, 5]], [0.4, 0.02], rtol=1e-6)
    assert (np.diff(zipf(6, 0.5, 0.4, 0.02)) < 0).all() and zipf(1, 1.0, 0.4, 0.1).tolist() == [np.float32(0.4)]
    np.testing.assert_allclose(LinearProbabilities(0.4, 0.2).values(3, 0), [0.4, 0.3, 0.2], rtol=1e-6)
    np.testing.assert_allclose(ExponentialMagnitudes(1.0, 4.0).values(3, 0), [1, 2, 4], rtol=1e-6)
    drawn = RandomProbabilities(0.4, 0.2).values(1000, 3)
    assert 0.2 <= drawn.min() < 0.21 and 0.39 < drawn.max() <= 0.4
    folded = FoldedNormal(0.0, 1.0, min_value=0.5, max_value=1.5).values(100, 3)
    assert folded.min() == 0.5 and folded.max() == 1.5 and ConstantMagnitude(2.0).values(0, 0).shape == (0,)
    with pytest.raises(UserError, match=r"lowest is 0\.5, expected at most highest, 0\.4"):
        Zipf(1.0, 0.4, 0.5)
    with pytest.raises(UserError, match="min_value is 2, expected at most max_value, 1"):
        FoldedNormal(0.0, 1.0, 2.0, 1.0)


def test_a_world_follows_its_seed():
    one, again, other = (build_world(config(seed=seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.features, again.features)
    assert one.hierarchy == again.hierarchy != other.hierarchy and not np.allclose(one.stds, other.stds)
    diag = np.asarray(one.correlation_diag) + np.sum(np.asarray(one.correlation_factor) ** 2, axis=1)
    np.testing.assert_allclose(diag, 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": None, "trees": None}, "names neither features nor trees"),
        ({"trees": {"branching": [3, 2], "roots": 1}}, r"branching is \[3, 2\].*write \[2, 3\]"),
        ({"trees": {"branching": [3], "roots": 1}}, "branching"),
        ({"child_cosine": 1.0}, "child_cosine is 1"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"embed": 0}, "embed is 0"),
        ({"probabilities": {"_target_": "jhsae.worlds.FoldedNormal"}}, "FoldedNormal"),
    ],
)
def test_what_no_world_can_be_made_of_is_a_sentence(changes, words, tmp_path):
    path = tmp_path / "world.yaml"
    given = cfg.to_dict(config()) | changes
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(UserError, match=words):
        cfg.load(WorldConfig, path)


def test_too_many_features_are_refused_before_they_are_made():
    with pytest.raises(UserError, match="more than 16,777,216 features"):
        trees(1000, 1000, 3)
