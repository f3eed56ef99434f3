"""The verb from end to end, on a random model of two blocks and a WordNet of a few dozen made-up nouns."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jhsae import lm
from jhsae.commands import teach
from jhsae.errors import UserError
from jhsae.teacher import Teacher

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
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
