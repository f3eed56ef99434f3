"""Folders of worlds: exact round trips, and one sentence for each folder that is damaged, foreign or hostile."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_worlds import config, random_graph, world

from jhsae.errors import UserError
from jhsae.worlds import Generators, Hierarchy, build_world, load_world, read_world, save_world
from jhsae.worlds.files import CONFIG, OURS, TENSORS, TREES
from jhsae.worlds.world import arrays


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    built, generators = build_world(config())
    return save_world(built, tmp_path_factory.mktemp("worlds") / "ours", generators, {"config_hash": "abc"})


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage; without our files and checksums, as SAELens would write it."""
    shutil.copytree(saved, tmp_path / "world")
    for name in (OURS, "jhsae_world.safetensors", "SHA256SUMS"):
        (tmp_path / "world" / name).unlink()
    return tmp_path / "world"


def same(a, b):
    assert a.hierarchy == b.hierarchy and a.noise == b.noise and arrays(a).keys() == arrays(b).keys()
    for name, value in arrays(a).items():
        np.testing.assert_array_equal(value, getattr(b, name))


def test_a_world_comes_back_number_by_number(saved):
    built, generators = build_world(config())
    back = read_world(saved)
    same(back.world, built)
    assert back.generators == generators and back.origin == {"config_hash": "abc"}


@pytest.mark.parametrize("seed", range(3))
def test_any_graph_comes_back(seed, tmp_path):
    """With flags and second parents that SAELens has no place for; edges in the order of the children."""
    graph = random_graph(seed)
    graph = Hierarchy(graph.size, tuple(sorted(graph.edges, key=lambda e: e[1])), graph.exclusive, graph.scaled)
    back = load_world(save_world(world(graph, noise=0.25), tmp_path / "w"))
    assert back.hierarchy.above == graph.above and back.noise == 0.25
    assert (back.hierarchy.exclusive, back.hierarchy.scaled) == (graph.exclusive, graph.scaled)


def test_worlds_without_a_hierarchy_or_with_one_feature(tmp_path):
    for size in (1, 3):
        there = save_world(world(Hierarchy(size)), tmp_path / str(size))
        assert not (there / TREES).exists()
        same(load_world(there), world(Hierarchy(size)))


def test_nothing_is_overwritten_and_a_deep_hierarchy_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match="exists already and is never overwritten"):
        save_world(load_world(saved), saved)
    chain = Hierarchy.of_parents([-1, *range(110)])
    with pytest.raises(UserError, match="110 levels below its roots, expected at most 100"):
        save_world(world(chain), tmp_path / "deep")
    deep = Hierarchy.of_parents([-1, *range(99)])
    assert load_world(save_world(world(deep), tmp_path / "less")).hierarchy == deep


def test_a_generator_of_other_numbers_is_not_written(saved):
    """Neither as a whole nor in part: what is written gives the numbers that are stored."""
    back = read_world(saved)
    other = Generators(**{**vars(back.generators), "seed": 99})
    there = save_world(back.world, saved.parent / "other", other)
    written = json.loads((there / CONFIG).read_text())
    assert written["std_firing_magnitudes"] == {"generator_name": "jhsae_world.safetensors"}
    assert written["mean_firing_magnitudes"]["generator_name"] == "linear"
    same(load_world(there), back.world)


def test_magnitudes_without_a_seed_are_drawn_with_a_warning(folder, caplog):
    """SAELens draws them anew at each load."""
    change(folder, CONFIG, seed=None)
    found = load_world(folder)
    assert "records no seed" in caplog.text and found.stds.min() >= 0 and found.stds.std() > 0


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def tensor(folder, **values):
    found = {k: v for k, v in (load_file(folder / TENSORS) | values).items() if v is not None}
    save_file(found, folder / TENSORS)


def nan(folder):
    vectors = load_file(folder / TENSORS)["feature_vectors"]
    vectors[3, 3] = np.nan
    tensor(folder, feature_vectors=vectors)


def node(feature, *children, **more):
    return {"feature_index": feature, "children": list(children)} | more


def roots(*nodes):
    return lambda folder: change(folder, TREES, roots=list(nodes))


def generator(key, **values):
    return lambda folder: change(folder, CONFIG, **{key: values})


HOSTILE = {
    "no_config": (lambda f: (f / CONFIG).unlink(), "no world in .*make one with jhsae world"),
    "no_tensors": (lambda f: (f / TENSORS).unlink(), f"there is no file .*{TENSORS}"),
    "no_trees": (lambda f: (f / TREES).unlink(), "has no hierarchy.json, though its config has a hierarchy"),
    "no_json": (lambda f: (f / CONFIG).write_text("{"), "cannot be read as JSON"),
    "list": (lambda f: (f / CONFIG).write_text("[]"), "holds a list, expected a JSON object"),
    "other_version": (lambda f: change(f, CONFIG, sparse=True), "has the key 'sparse'.*another version of SAELens"),
    "no_size": (lambda f: change(f, CONFIG, num_features=None), "'num_features' is None, expected a whole number"),
    "many": (lambda f: change(f, CONFIG, num_features=10**8), r"feature_vectors is F32 \[45, 24\], expected \[1000"),
    "bias": (lambda f: change(f, CONFIG, bias="x"), "'bias' is 'x', expected a number"),
    "width": (lambda f: tensor(f, bias=np.zeros(3, np.float32)), r"bias is F32 \[3\], expected \[24\]"),
    "dtype": (lambda f: tensor(f, bias=np.zeros(24, np.int32)), r"bias is I32 \[24\], expected \[24\] of float32"),
    "missing": (lambda f: tensor(f, bias=None), r"has no tensor 'bias' \[24\]"),
    "unknown": (lambda f: tensor(f, extra=np.zeros(3, np.float32)), "has a tensor 'extra', which no world has"),
    "half": (lambda f: tensor(f, correlation_diag=None), "has no tensor 'correlation_diag'"),
    "nan": (nan, "features is not finite"),
    "zero": (lambda f: tensor(f, feature_vectors=np.zeros((45, 24), np.float32)), "feature vector 0 has norm 0"),
    "likely": (lambda f: tensor(f, firing_probabilities=np.full(45, 1.5, np.float32)), "with probability 1.5"),
    "negative": (lambda f: tensor(f, firing_probabilities=np.full(45, -0.5, np.float32)), "with probability -0.5"),
    "cut": (lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-8]), "cannot be read as safetensors"),
    "generator": (generator("firing_probability", generator_name="uniform"), "generator 'uniform', expected one of"),
    "no_generator": (generator("std_firing_magnitudes", mean=1), "has the generator 'None', expected one of constant"),
    "key": (generator("std_firing_magnitudes", generator_name="linear", begin=1, end=2), "has the key 'begin'"),
    "few_keys": (generator("std_firing_magnitudes", generator_name="linear", end=2), "cannot be used"),
    "range": (generator("std_firing_magnitudes", generator_name="linear", start=-1, end=2), "start is -1"),
    "word": (generator("mean_firing_magnitudes", generator_name="constant", value="x"), r"value' is 'x', expected"),
    "ours_gone": (generator("mean_firing_magnitudes", generator_name="jhsae_world.safetensors"), f"has no {OURS}"),
    "mean": (lambda f: change(f, CONFIG, mean_firing_magnitudes=0.0), "scales its children .* but its mean is 0"),
    "std": (lambda f: change(f, CONFIG, std_firing_magnitudes=-1), "a standard deviation is -1"),
    "cycle": (roots(node(0, node(1, node(0)))), "feature 0 is below itself"),
    "twice": (roots(node(0, node(1)), node(1)), "feature 1 stands there twice"),
    "group": (roots(node(None, node(1))), "a node without feature_index.*give it a feature"),
    "outside": (roots(node(45)), "'feature_index' is 45, expected a whole number from 0 to 44"),
    "text": (roots("0"), "a node is '0', expected an object"),
    "flag": (roots(node(0, mutually_exclusive_children=1)), "'mutually_exclusive_children' is 1, expected true"),
    "node_key": (roots(node(0, weight=1)), "a node has the key 'weight'"),
    "no_roots": (lambda f: (f / TREES).write_text("{}"), "no key 'roots'"),
    "deep": (lambda f: (f / TREES).write_text('{"roots":' + "[" * 900 + "]" * 900 + "}"), "nested"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_foreign_folder_that_is_wrong_is_one_sentence(folder, case):
    damage, words = HOSTILE[case]
    load_world(folder)
    damage(folder)
    with pytest.raises(UserError, match=words) as error:
        load_world(folder)
    assert str(folder) in str(error.value) and len(str(error.value).splitlines()) == 1


OURS_WRONG = {
    "pair": ({"edges": [[1]]}, "is no pair of parent and child"),
    "outside": ({"edges": [[0, 99]]}, "names feature 99, but the world has 45"),
    "cycle": ({"edges": [[44, 0], [0, 44]]}, "has a cycle"),
    "twice": ({"edges": [[1, 40], [1, 40]]}, "twice"),
    "noise": ({"noise": -1}, "'noise' is -1, expected a number of at least 0"),
    "format": ({"format": 2}, "'format' is 2"),
    "flags": ({"exclusive": ["a"]}, "'exclusive.0' is 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("case", OURS_WRONG)
def test_our_own_file_is_checked_as_well(saved, tmp_path, case):
    values, words = OURS_WRONG[case]
    shutil.copytree(saved, tmp_path / "w")
    change(tmp_path / "w", OURS, **values)
    with pytest.raises(UserError, match="damaged or was changed"):
        load_world(tmp_path / "w")
    name = re.escape(OURS)
    sums = (tmp_path / "w" / "SHA256SUMS").read_text()
    digest = hashlib.sha256((tmp_path / "w" / OURS).read_bytes()).hexdigest()
    (tmp_path / "w" / "SHA256SUMS").write_text(re.sub(rf"\w+  {name}", f"{digest}  {OURS}", sums))
    with pytest.raises(UserError, match=words):
        load_world(tmp_path / "w")


def test_our_world_without_its_checksums_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "w")
    (tmp_path / "w" / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="has no SHA256SUMS"):
        load_world(tmp_path / "w")
    with pytest.raises(UserError, match="the world's folder is gs://a/b, expected a path of this machine"):
        load_world("gs://a/b")
