"""The verb from end to end, on a random model of two blocks and a WordNet of a few dozen made-up nouns."""

import json
from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jhsae import config as cfg
from jhsae import lm
from jhsae.commands import teach
from jhsae.data import write_array
from jhsae.errors import UserError
from jhsae.teacher import SelectionLimits, Teacher

PARENTS, CHILDREN, WORDS = 3, 2, 8
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
LDA = {
    "evidence": {"_target_": "jhsae.teacher.Prompts", "batch": 16, "templates": ("the", "not {other} but")},
    "estimator": {"_target_": "jhsae.teacher.LDAEstimator", "shrinkage": 0.5},
}


def nouns():
    """lemma -> lemma of its hypernym, top first."""
    tree = {"root": None}
    for p in range(PARENTS):
        tree[f"parent{p}"] = "root"
        for c in range(CHILDREN):
            tree[f"child{p}{c}"] = f"parent{p}"
            tree |= {f"word{p}{c}{w}": f"child{p}{c}" for w in range(WORDS)}
    return tree


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    tree = nouns()
    offset = {lemma: f"{i:08d}" for i, lemma in enumerate(tree, start=1)}
    pointer = {n: f"001 @ {offset[up]} n 0000" if up else "000" for n, up in tree.items()}
    data = [f"{offset[n]} 03 n 01 {n} 0 {pointer[n]} | a gloss\n" for n in tree]
    (folder / "data.noun").write_text("".join(data))
    (folder / "index.noun").write_text("".join(f"{n} n 1 0 1 0 {offset[n]}\n" for n in sorted(tree)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    words = [*SPECIAL, *(n for n in nouns() if n.startswith("word")), *(f"other{i}" for i in range(40))]
    config = lm.Gemma2Config(
        vocab=len(words), embed=16, hidden=24, heads=2, kv_heads=1, head_dim=8, window=5,
        sliding=(True, False), query_pre_attn_scalar=8, rope_theta=100.0,
    )  # fmt: skip
    shapes = {
        "q": (16, 16), "k": (8, 16), "v": (8, 16), "o": (16, 16), "gate": (24, 16), "up": (24, 16),
        "down": (16, 24), "attention_in": (16,), "attention_out": (16,), "mlp_in": (16,), "mlp_out": (16,),
    }  # fmt: skip
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    blocks = lm.Blocks(**{n: 0.3 * normal(2, *s) for n, s in shapes.items()})
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{w[1:-1]}_token": w for w in SPECIAL})
    folder = tmp_path_factory.mktemp("model") / "lm"
    gemma = lm.Gemma2(normal(len(words), 16), blocks, 0.1 * normal(16), config)
    lm.save(gemma, tokenizer, folder, dtype=np.float32)
    return folder


@pytest.fixture
def config(model, wordnet, tmp_path):
    source = teach.Source(str(model), layer=1)
    return teach.Teach(str(tmp_path / "teacher"), source, str(wordnet), parents=PARENTS, sub=4)


@pytest.mark.parametrize("parts", [{}, LDA], ids=["park", "lda"])
def test_the_artifact_says_what_it_was_made_of(config, parts, capsys):
    folder = teach.run(replace(config, **parts))
    found = Teacher.load(folder)
    assert {c.name for c in found.concepts} == {f"parent{p}.n.01" for p in range(PARENTS)}
    assert found.counts.tolist() == [CHILDREN] * PARENTS
    assert found.up.shape == (PARENTS, 4, 16)
    assert found.provenance["parents"] == PARENTS
    assert found.provenance["tokens"] == PARENTS * CHILDREN * WORDS
    assert found.provenance["config"]["sub"] == 4
    assert 0 <= found.validation["projection"]["measured"]["auc"] <= 1
    assert 0 <= found.validation["readout"]["measured"]["median"] <= 1
    printed = capsys.readouterr().out
    assert "3 parents with 6 children" in printed
    assert "layer 1" in printed
    assert "parent0.n.01" in printed


def test_two_runs_give_the_same_bytes(config, tmp_path):
    folders = [teach.run(replace(config, out=str(tmp_path / name))) for name in "ab"]
    first, second = ((f / "teacher.safetensors").read_bytes() for f in folders)
    assert first == second
    one, two = (json.loads((f / "teacher.json").read_text()) for f in folders)
    assert one["validation"] == two["validation"]
    assert one["provenance"]["config_hash"] == two["provenance"]["config_hash"]


def test_without_a_layer_nothing_is_read_off_activations(config):
    found = Teacher.load(teach.run(replace(config, lm=replace(config.lm, layer=None))))
    assert "readout" not in found.validation


def test_named_concepts_are_the_parents(config):
    found = Teacher.load(teach.run(replace(config, concepts=["parent2", "parent0.n.01"])))
    assert [c.name for c in found.concepts] == ["parent2.n.01", "parent0.n.01"]


@pytest.fixture
def edges(tmp_path):
    """The made-up nouns as a file of another ontology; a concept's id is its word."""
    file = tmp_path / "ontology.jsonl"
    lines = ({"concept": n, "parents": [up] if up else [], "words": [n]} for n, up in nouns().items())
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_an_ontology_of_a_file_gives_the_teacher_of_its_wordnet(config, edges, tmp_path):
    other = replace(config, wordnet=None, ontology=edges, out=str(tmp_path / "other"))
    one, two = (Teacher.load(teach.run(c)) for c in (config, other))
    assert np.array_equal(one.up, two.up) and np.array_equal(one.parents, two.parents)
    assert [c.id for c in two.concepts] == [c.name.removesuffix(".n.01") for c in one.concepts]


def test_verbs_are_taught_from_their_own_file(config, wordnet, tmp_path):
    folder = tmp_path / "verbs"
    folder.mkdir()
    for kind in ("data", "index"):
        text = (wordnet / f"{kind}.noun").read_text().replace(" n ", " v ")
        (folder / f"{kind}.verb").write_text(text)
    found = Teacher.load(teach.run(replace(config, wordnet=str(folder), parts="v")))
    assert {c.name for c in found.concepts} == {f"parent{p}.v.01" for p in range(PARENTS)}


def test_the_tests_of_the_theory_are_sections_of_their_own(config, capsys):
    limits = SelectionLimits(min_tokens=4)
    found = Teacher.load(teach.run(replace(config, theory=True, interventions=6, limits=limits)))
    plain = {"orthogonality", "projection", "readout"}
    new = {"hierarchy", "consecutive", "simplex", "interventions", "interventions_last_layer"}
    assert found.validation.keys() == plain | new
    assert found.validation["hierarchy"]["measured"]["n"] == 9  # 3 parents under the root, 6 children
    assert found.validation["consecutive"]["measured"]["n"] == 6
    assert found.validation["interventions"]["target_sibling"]["n"] == 6
    printed = capsys.readouterr().out
    assert "child - parent, and parent - grandparent" in printed and "at the last layer" in printed


def test_at_the_last_layer_what_is_added_goes_straight_into_the_logits(config, model):
    loaded = lm.load(model)
    steer = teach.steered(loaded, teach.make_view(config, loaded), loaded.model.layers)
    unit = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 2)))[0].T
    found = steer(np.concatenate([np.zeros((1, 16)), unit]))
    oracle, head = [], eqx.filter_jit(loaded.model.logits_from)
    for text in teach.READ:
        ids = jnp.asarray([[2, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        x = eqx.filter_jit(loaded.model.residual)(ids, loaded.model.layers)
        for i, row in enumerate([np.zeros(16), *unit]):
            changed = np.array(x)
            changed[0, -1] += teach.STRENGTH * np.linalg.norm(x[0, -1]) * row
            oracle.append((i, np.asarray(head(jnp.asarray(changed), loaded.model.layers))[0, -1]))
    for i in range(3):
        np.testing.assert_allclose(found[i], np.mean([row for j, row in oracle if j == i], axis=0), atol=1e-4)


@pytest.mark.parametrize(
    ("geometry", "check"),
    [
        ({"_target_": "jhsae.teacher.EuclideanGeometry"}, lambda s: np.array_equal(s, np.eye(16))),
        ({"_target_": "jhsae.teacher.UnembeddingVariances"}, lambda s: np.array_equal(s, np.diag(np.diag(s)))),
        ({"_target_": "jhsae.teacher.ActivationCovariance"}, lambda s: np.abs(s - np.diag(np.diag(s))).max() > 0.1),
        ({"_target_": "jhsae.teacher.ActivationVariances"}, lambda s: np.array_equal(s, np.diag(np.diag(s)))),
    ],
    ids=lambda value: value["_target_"].rpartition(".")[2] if isinstance(value, dict) else "",
)
def test_each_geometry_is_one_line(config, geometry, check, tmp_path):
    rng = np.random.default_rng(0)
    if "Activation" in geometry["_target_"]:
        x = (rng.normal(size=(200, 16)) @ rng.normal(size=(16, 16))).astype(np.float32)
        geometry = geometry | {"path": write_array(tmp_path / "store", x, name=config.lm.path).path}
    found = Teacher.load(teach.run(replace(config, geometry=geometry, shrinkage=0.1)))
    assert check(found.sigma) and np.trace(found.sigma) == pytest.approx(16, rel=1e-4)


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        (np.ones((20, 16)), None, "are all equal, so they have no metric"),
        (np.ones((20, 16)), "another", "holds activations of another, but the teacher is made from"),
        (np.eye(16)[:4], None, "covariance is singular .* write a shrinkage above 0"),
        (np.eye(16)[:1], None, "a covariance of 1 rows"),
    ],
)
def test_activations_without_a_metric_are_named(config, rows, name, message, tmp_path):
    path = write_array(tmp_path / "store", rows.astype(np.float32), name=name or config.lm.path).path
    geometry = {"_target_": "jhsae.teacher.ActivationCovariance", "path": path}
    with pytest.raises(UserError, match=message):
        teach.run(replace(config, geometry=geometry, shrinkage=0.0))
    assert not (tmp_path / "teacher").exists()


def test_the_estimated_shrinkage_is_recorded_and_printed(config, capsys):
    found = Teacher.load(teach.run(replace(config, shrinkage="ledoit_wolf")))
    assert 0 < found.provenance["shrinkage"] < 1
    assert f", shrinkage {found.provenance['shrinkage']:.3g}" in capsys.readouterr().out


def test_new_keys_at_their_defaults_leave_the_hash_alone(config):
    """Of configs that were written before these keys existed."""
    file = cfg.find("teacher/embedded.yaml")
    assert cfg.config_hash(cfg.load(teach.Teach, file)) == "f6622ca2c35b"
    assert cfg.config_hash(cfg.load(teach.Teach, file, ["shrinkage=0.05", "parts=n"])) == "f6622ca2c35b"
    for new in ("parts=nv", "theory=true", "interventions=3", "shrinkage=ledoit_wolf", "ontology=o.jsonl"):
        assert cfg.config_hash(cfg.load(teach.Teach, file, [new])) != "f6622ca2c35b"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"concept": "a", "words": ["zebra", "gnu"]}], "none of the 2 words of the ontology is a single token of"),
        ([{"concept": "a", "parents": ["b"], "words": ["word000"]}], "'a' has the parent 'b', which is not in"),
        ([{"concept": "a", "parents": ["a"], "words": ["word000"]}], "has a cycle at or above 'a'"),
        ([{"concept": "a"}], "'a' has no words"),
        ([{"concept": "a", "words": ["word000"]}], "gives 0 parents|give 0 parents"),
    ],
)
def test_an_ontology_that_cannot_be_taught_is_one_sentence(config, lines, message, tmp_path):
    file = tmp_path / "o.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=message):
        teach.run(replace(config, wordnet=None, ontology=str(file)))
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wordnet": None, "ontology": "o.jsonl", "parts": "nv"}, "names an ontology beside wordnet or parts"),
        ({"parts": "v"}, "no WordNet database file"),
        ({"parts": "nv"}, r"no index\.verb"),
        ({"parts": "x"}, "parts is 'x'"),
        ({"limits": SelectionLimits(min_tokens=999, max_tokens=999)}, "0 parents, not 3"),
        ({"concepts": ["child00"]}, r"child00\.n\.01 has 8 single-token words and 0 children"),
        ({"concepts": ["unicorn"]}, "unknown concept 'unicorn'"),
        ({"concepts": ["parnet1"]}, "did you mean 'parent1'"),
        ({"parents": 9}, "3 parents, not 9"),
        ({"sub": 16}, "sub=16"),
        ({"evidence": LDA["evidence"], "lm": {"layer": None}}, r"Prompts reads activations; write lm\.layer"),
        ({"lm": {"layer": 7}}, "layers=7"),
        ({"wordnet": "/nowhere"}, "no WordNet"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(config, change, message, tmp_path):
    change = dict(change)
    source = replace(config.lm, **change.pop("lm", {}))
    with pytest.raises(UserError, match=message):
        teach.run(replace(config, lm=source, **change))
    assert not (tmp_path / "teacher").exists()


def test_a_finished_teacher_is_left_alone_and_one_of_another_config_is_refused(config, caplog, capsys):
    folder = teach.run(config)
    before = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
    with caplog.at_level("INFO", "jhsae"):
        assert teach.run(config) == folder
    assert "finished; nothing to do" in caplog.text
    assert before == {f: f.stat().st_mtime_ns for f in folder.iterdir()}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{folder}: 3 parents with 6 children, subspaces of 4 of 16 dimensions, from ")
    assert f"next: jhsae train geometry.yaml teacher={folder} data.store=STORE" in last
    with pytest.raises(UserError, match=r"a teacher of another config .* is never overwritten; write another out="):
        teach.run(replace(config, seed=1))
    (folder / "teacher.json").unlink()
    with pytest.raises(UserError, match="never overwritten"):
        teach.run(config)
