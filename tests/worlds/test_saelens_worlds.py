"""SAELens draws at our rates, loads what we write, and computes the same from the same config."""

import json
import warnings
from types import ModuleType

import jax
import numpy as np
import pytest
from small_worlds import config

from jhsae import worlds
from jhsae.worlds import build_world, load_world, read_world, save_world, torch_random
from jhsae.worlds.config import TreeConfig
from jhsae.worlds.directions import orthogonalize, random_directions

pytestmark = pytest.mark.filterwarnings("default")  # sae_lens and what it imports warn about themselves
ROWS = 20_000
Z = 6.0  # two-sided: 2e-9 per comparison, 2e-6 over the thousand of them


@pytest.fixture(scope="module")
def synthetic() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens.synthetic")


@pytest.fixture(scope="module")
def torch(synthetic) -> ModuleType:
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A world with trees, exclusion, scaling, correlation and drawn magnitudes, and its folder."""
    folder = tmp_path_factory.mktemp("worlds") / "ours"
    world, generators = build_world(config())
    return world, generators, save_world(world, folder, generators)


@pytest.fixture(scope="module")
def samples(synthetic, torch, ours):
    """Codes of the same world: ours and theirs."""
    torch.manual_seed(0)
    theirs = synthetic.SyntheticModel.load_from_disk(ours[2]).sample_with_features(ROWS)[1].detach().numpy()
    return np.asarray(ours[0].sample(jax.random.key(0), ROWS)[1]), theirs


def test_features_and_pairs_fire_as_often_as_theirs(samples):
    """Two binomial samples, feature by feature and pair by pair, where enough fire for the normal approximation."""
    fires = [(codes > 0).astype(np.float64) for codes in samples]
    rates = [f.T @ f / ROWS for f in fires]
    mean = (rates[0] + rates[1]) / 2
    enough = ROWS * mean >= 20
    z = (rates[0] - rates[1])[enough] / np.sqrt(2 * mean * (1 - mean) / ROWS)[enough]
    assert enough.sum() > 800 and np.abs(z).max() < Z
    assert np.abs(z).max() > 1.5 and z.std() < 1.5


def test_values_have_their_means_and_deviations(samples):
    ours, theirs = samples
    for power in (1, 2):
        a, b = ours**power, theirs**power
        error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / ROWS) + 1e-9
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) / error).max() < Z


def test_a_world_without_the_hierarchy_would_be_noticed(samples):
    """The comparison has power: the same world without its exclusive groups differs by more than the bound."""
    rates = [(codes > 0).mean(axis=0) for codes in samples]
    world = build_world(config())[0]
    plain = worlds.Hierarchy(world.size, world.hierarchy.edges, scaled=world.hierarchy.scaled)
    changed = worlds.World(**{**vars(world), "hierarchy": plain})
    found = (np.asarray(changed.sample(jax.random.key(0), ROWS)[1]) > 0).mean(axis=0)
    assert (np.abs(found - rates[1]) / np.sqrt(2 * rates[1] * (1 - rates[1]) / ROWS + 1e-12)).max() > 2 * Z


def test_saelens_loads_the_numbers_of_our_world(synthetic, torch, ours):
    world, _, folder = ours
    model = synthetic.SyntheticModel.load_from_disk(folder)
    generator = model.activation_generator
    pairs = {
        "features": model.feature_dict.feature_vectors,
        "bias": model.feature_dict.bias,
        "probabilities": generator.firing_probabilities,
        "means": generator.mean_firing_magnitudes,
        "stds": generator.std_firing_magnitudes,
        "correlation_factor": model.correlation_matrix.correlation_factor,
        "correlation_diag": model.correlation_matrix.correlation_diag,
    }
    for name, theirs in pairs.items():
        np.testing.assert_allclose(theirs.detach().numpy(), getattr(world, name), rtol=1e-6, atol=1e-6)
    wanted = -torch.special.ndtri(generator.firing_probabilities)
    np.testing.assert_allclose(generator.correlation_thresholds, wanted, rtol=1e-3, atol=1e-4)
    listed = [(n.feature_index, n.mutually_exclusive_children, n.scale_children_by_parent) for n in nodes(model)]
    parents = {i for i, below in enumerate(world.hierarchy.below) if below}
    assert {i for i, exclusive, _ in listed if exclusive} == world.hierarchy.exclusive
    assert {i for i, _, scaled in listed if scaled} == world.hierarchy.scaled == parents
    edges = [(n.feature_index, child.feature_index) for n in nodes(model) for child in n.children]
    assert sorted(edges) == sorted(world.hierarchy.edges)


def nodes(model):
    todo = list(model.hierarchy.roots)
    for node in todo:
        todo += node.children
    return todo


def test_what_saelens_saves_is_the_same_world(synthetic, ours, tmp_path):
    """Theirs has none of our files; the standard deviations, drawn at random, are drawn again from its seed."""
    world, generators, folder = ours
    synthetic.SyntheticModel.load_from_disk(folder).save(tmp_path / "theirs")
    back = read_world(tmp_path / "theirs")
    assert back.generators == generators and back.world.hierarchy == world.hierarchy and back.origin == {}
    for name in ("features", "bias", "probabilities", "means", "stds", "correlation_factor"):
        np.testing.assert_allclose(getattr(back.world, name), getattr(world, name), rtol=1e-6, atol=1e-6)


def test_a_world_that_saelens_made(synthetic, tmp_path):
    """Built from a config by SAELens: our generators, compensation and hierarchy of the same config are its own."""
    chosen = synthetic.SyntheticModelConfig(
        num_features=60,
        hidden_dim=16,
        firing_probability=synthetic.RandomFiringProbabilityConfig(max_prob=0.4, min_prob=0.05),
        hierarchy=synthetic.HierarchyConfig(
            total_root_nodes=4, branching_factor=(2, 4), max_depth=2, mutually_exclusive_portion=0.5,
            compensate_probabilities=True, scale_children_by_parent=True,
        ),
        std_firing_magnitudes=synthetic.FoldedNormalMagnitudeConfig(mean=0.3, std=0.2, max_value=0.6),
        mean_firing_magnitudes=synthetic.ExponentialMagnitudeConfig(start=3.0, end=1.0),
        seed=7,
    )  # fmt: skip
    model = synthetic.SyntheticModel(chosen)
    model.save(tmp_path / "theirs")
    found = read_world(tmp_path / "theirs")
    values = found.generators.values(found.world.hierarchy)
    generator = model.activation_generator
    for name, theirs in (
        ("probabilities", generator.firing_probabilities),
        ("means", generator.mean_firing_magnitudes),
        ("stds", generator.std_firing_magnitudes),
    ):
        np.testing.assert_allclose(values[name], theirs.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(getattr(found.world, name), theirs.numpy(), rtol=1e-5, atol=1e-6)
    assert found.generators.compensate and values["probabilities"].max() == 1
    saved = save_world(found.world, tmp_path / "ours", found.generators)
    assert json.loads((saved / "hierarchy.json").read_text()) == _without_leaf_flags(tmp_path / "theirs")


def _without_leaf_flags(folder):
    trees = json.loads((folder / "hierarchy.json").read_text())
    todo = list(trees["roots"])
    for node in todo:
        node["scale_children_by_parent"] &= bool(node["children"])
        todo += node["children"]
    return trees


def test_numbers_that_no_generator_gives_are_not_loaded_as_others(synthetic, ours, tmp_path):
    """SAELens has no place for single means: it refuses the folder by name instead; ours is exact."""
    world = ours[0]
    changed = worlds.World(**{**vars(world), "means": world.means.at[3].set(9.0)})
    folder = save_world(changed, tmp_path / "world", ours[1])
    with pytest.raises(ValueError, match=r"Unknown name: 'jhsae_world\.safetensors'"):
        synthetic.SyntheticModel.load_from_disk(folder)
    np.testing.assert_array_equal(load_world(folder).means, changed.means)


def test_a_graph_is_loaded_as_the_forest_of_its_first_parents(synthetic, tmp_path):
    world, generators = build_world(config(trees=TreeConfig(3, 3, 2, second_parents=0.5), correlation=None, noise=0.1))
    model = synthetic.SyntheticModel.load_from_disk(save_world(world, tmp_path / "graph", generators))
    first = {i: parents[0] for i, parents in enumerate(world.hierarchy.above) if parents}
    assert {c.feature_index: n.feature_index for n in nodes(model) for c in n.children} == first
    assert load_world(tmp_path / "graph").hierarchy == world.hierarchy and load_world(tmp_path / "graph").noise == 0.1
    np.testing.assert_array_equal(model.activation_generator.firing_probabilities, world.probabilities)


def test_orthogonalisation_is_theirs_step_by_step(synthetic, torch):
    from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings

    x = random_directions(np.random.default_rng(0), 40, 16)
    theirs = orthogonalize_embeddings(torch.tensor(x), num_steps=20, lr=0.01, chunk_size=7)
    np.testing.assert_allclose(orthogonalize(x, 20, 0.01), theirs.numpy(), atol=2e-4)
    assert np.abs(orthogonalize(x, 20, 0.01) - x).max() > 0.05


@pytest.mark.parametrize("count", [1, 2, 7, 15, 16, 17, 31, 32, 1000])
@pytest.mark.parametrize("seed", [0, 43, 2**32 - 1, 2**32 + 5])
def test_torchs_numbers_without_torch(torch, seed, count):
    def generator():
        return torch.Generator().manual_seed(seed)

    np.testing.assert_array_equal(torch_random.uniform(seed, count), torch.rand(count, generator=generator()))
    normal = torch.randn(count, generator=generator())
    np.testing.assert_allclose(torch_random.normal(seed, count), normal, atol=1e-6)


@pytest.mark.slow
def test_the_largest_cosine_is_their_superposition_statistic(synthetic, ours):
    from sae_lens.synthetic.stats import compute_superposition_stats

    model = synthetic.SyntheticModel.load_from_disk(ours[2])
    theirs = compute_superposition_stats(model.feature_dict).mean_max_abs_cos_sim
    assert abs(worlds.largest_cosines(np.asarray(ours[0].features)).mean() - theirs) < 1e-5
