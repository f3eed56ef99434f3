"""A saved SAE comes back with its normaliser, number for number; files that do not fit are refused with a sentence."""

import json
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from safetensors.numpy import load_file, save_file
from sealed import sealed

from jhsae import config
from jhsae.data import AbstractNormalizer, ArrayRows, Identity
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE
from jhsae.sae.io import with_facts
from jhsae.training.checkpoint import load_sae, save_sae

FLAT = {
    "_target_": "jhsae.sae.FlatSAE",
    "embed": runs.EMBED,
    "features": 24,
    "sparsifier": {"_target_": "jhsae.sparsify.TopK", "k": 3},
}
TREE = {
    "_target_": "jhsae.sae.HierarchicalSAE",
    "embed": runs.EMBED,
    "experts": 6,
    "sub": 2,
    "atoms": 3,
    "route": {"_target_": "jhsae.sparsify.TopK", "k": 2},
    "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
    "biases": ["encoder", "decoder"],
}
LINEAR = {"_target_": "jhsae.schedule.Linear", "start": 1.5, "end": 0.5, "steps": 40}
BATCH = FLAT | {"sparsifier": {"_target_": "jhsae.sparsify.BatchTopK", "k": 3.0}}
JUMP = FLAT | {"sparsifier": {"_target_": "jhsae.sparsify.JumpReLU", "initial": 0.5}}
PURSUIT = {
    "_target_": "jhsae.sae.PursuitSAE",
    "embed": runs.EMBED,
    "levels": [6, 3],
    "budget": {"_target_": "jhsae.sparsify.MeanL0", "k": 3.0},
}
WHITEN = {"_target_": "jhsae.data.Whiten", "eps": 1e-4}
NORMALIZERS = [
    {"_target_": f"jhsae.data.{name}"}
    for name in ("Identity", "UnitNorm", "CenteredUnitNorm", "Scale", "CenterScale", "ConstantNorm", "LayerNorm")
] + [{"_target_": "jhsae.data.Standardize", "rows": 100}, WHITEN]
ABOUT = {"name": "a", "reads": {"model": "array", "layer": 0}}
X = runs.activations(128)


def built(slot, normalize):
    """An inference-time SAE with every parameter moved away from its start, and a fitted normaliser."""
    sae = config.build(slot, AbstractSAE, key=jax.random.key(1)).for_inference(None)
    arrays, static = eqx.partition(sae, eqx.is_inexact_array)
    moved = jax.tree.map(lambda a: a + jnp.linspace(0.1, 0.2, a.size).reshape(a.shape), arrays)
    return eqx.combine(moved, static), config.build(normalize, AbstractNormalizer).fit(ArrayRows(X))


@pytest.fixture
def saved(tmp_path):
    """A folder with a flat SAE behind whitening."""
    save_sae(tmp_path / "sae", *_arguments(FLAT, WHITEN))
    return tmp_path / "sae"


def _arguments(slot, normalize):
    sae, normalizer = built(slot, normalize)
    return sae, slot, normalize, normalizer, ABOUT


RULES = {
    "gumbel": {"_target_": "jhsae.sparsify.GumbelTopK", "k": 2, "temperature": LINEAR},
    "offset": {"_target_": "jhsae.sparsify.OffsetTopK", "k": 2, "offset": 0.1},
}
BARE = {
    "flat": FLAT,
    "batch": BATCH,
    "jump": JUMP,
    "tree": TREE,
    "pursuit": PURSUIT,
    "exact": PURSUIT | {"budget": {"_target_": "jhsae.sparsify.ExactL0", "k": 3}, "filled": 1, "growth": 2.0},
    "gated": {"_target_": "jhsae.sae.GatedSAE", "embed": runs.EMBED, "features": 24, "apply_b_dec_to_input": False},
    "matching": {"_target_": "jhsae.sae.MatchingPursuitSAE", "embed": runs.EMBED, "features": 24},
    "unit": FLAT | {"code_unit": {"_target_": "jhsae.sae.DecoderNormUnit"}, "chunk": 8},
    "tied": TREE
    | {"tie": ["router", "atoms"], "route": RULES["gumbel"], "child_input": {"_target_": "jhsae.sae.Residual"}},
    "offset": TREE
    | {"biases": ["decoder"], "route": RULES["offset"], "child_scale": {"_target_": "jhsae.sae.ScaledByParent"}},
}


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("normalize", [NORMALIZERS[0], *NORMALIZERS[3:5], WHITEN], ids=lambda s: s["_target_"][11:])
def test_a_bare_sae_comes_back_without_its_slots(tmp_path, name, normalize):
    """`save_sae` and `load_sae` are a pair: the slots are read off the SAE and the normaliser."""
    sae, normalizer = built(BARE[name], normalize)
    save_sae(tmp_path / "mine", sae, normalizer=normalizer)
    again, back, about = load_sae(tmp_path / "mine")
    assert bool(eqx.tree_equal(again, sae)) and bool(eqx.tree_equal(back, normalizer))
    assert about["name"] == "mine" and about["reads"] == {"model": None, "layer": None} and "commit" in about
    save_sae(tmp_path / "again", again)
    assert (tmp_path / "again" / "sae.safetensors").read_bytes() == (tmp_path / "mine" / "sae.safetensors").read_bytes()


@pytest.mark.parametrize(("slot", "rule"), [(BATCH, "BatchTopK"), (PURSUIT, "MeanL0")])
def test_an_sae_of_training_needs_its_thresholds(tmp_path, slot, rule):
    sae = config.build(slot, AbstractSAE, key=jax.random.key(0))
    with pytest.raises(UserError, match=rf"\({rule}\) is not the one of inference.*for_inference\(usage\)"):
        save_sae(tmp_path / "s", sae)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("normalize", NORMALIZERS, ids=lambda slot: slot["_target_"].rsplit(".", 1)[1])
def test_every_normaliser_comes_back_bit_for_bit(tmp_path, normalize):
    sae, normalizer = built(FLAT, normalize)
    save_sae(tmp_path / "sae", sae, FLAT, normalize, normalizer, ABOUT)
    _, again, about = load_sae(tmp_path / "sae")
    assert bool(eqx.tree_equal(again, normalizer))
    normal, token = normalizer(jnp.asarray(X))
    np.testing.assert_array_equal(again(jnp.asarray(X))[0], normal)
    np.testing.assert_array_equal(again.undo(normal, token), normalizer.undo(normal, token))
    assert (tmp_path / "sae" / "normalizer.safetensors").exists() == bool(normalizer.shapes(runs.EMBED))
    assert about == {"format": 3, "sae": FLAT, "normalize": normalize, **ABOUT}


@pytest.mark.parametrize("slot", [FLAT, TREE, BATCH, JUMP, PURSUIT], ids=["flat", "tree", "batch", "jump", "pursuit"])
def test_every_sae_comes_back_bit_for_bit_and_settled(tmp_path, slot):
    sae, normalizer = built(slot, NORMALIZERS[0])
    save_sae(tmp_path / "run" / "sae", sae, slot, NORMALIZERS[0], normalizer, ABOUT)
    again, _, _ = load_sae(tmp_path / "run")
    assert bool(eqx.tree_equal(again, sae))
    np.testing.assert_array_equal(again(X), sae(X))
    assert not (tmp_path / "run" / "sae.partial").exists()


def test_about_cannot_replace_the_slots(tmp_path):
    sae, normalizer = built(FLAT, NORMALIZERS[0])
    about = ABOUT | {"format": 1, "sae": TREE, "normalize": WHITEN}
    save_sae(tmp_path / "sae", sae, FLAT, NORMALIZERS[0], normalizer, about)
    assert load_sae(tmp_path / "sae")[2] == {"format": 3, "sae": FLAT, "normalize": NORMALIZERS[0], **ABOUT}


def test_what_a_cut_off_save_left_behind_does_not_come_along(tmp_path, saved):
    left = tmp_path / "other.partial"
    shutil.copytree(saved, left)
    sae, normalizer = built(FLAT, NORMALIZERS[0])
    save_sae(tmp_path / "other", sae, FLAT, NORMALIZERS[0], normalizer, ABOUT)
    assert not (tmp_path / "other" / "normalizer.safetensors").exists()


def test_nothing_is_overwritten(saved):
    before = {file: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(UserError, match=r"is never overwritten; write another out=\.\.\."):
        save_sae(saved, *_arguments(FLAT, WHITEN))
    assert before == {file: file.read_bytes() for file in saved.iterdir()}


def test_a_normaliser_without_statistics_is_not_saved(tmp_path):
    sae, _ = built(FLAT, WHITEN)
    with pytest.raises(UserError, match=r"Whiten has no mean yet; save the normaliser that fit\(store\) returns"):
        save_sae(tmp_path / "sae", sae, FLAT, WHITEN, config.build(WHITEN, AbstractNormalizer), ABOUT)
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 4}, "is of format 4; this jhsae reads up to 3; update jhsae"),
        ({"format": 1, "statistics": {"embed": 16}}, "is of format 1, of an older jhsae.*train it again"),
        ({"format": "3"}, "names no format, expected format 3"),
        ({"format": True}, "names no format"),
        ({"format": None}, "names no format"),
        ({"sae": FLAT | {"width": 3}}, "sae.json.*width.*is not an argument of jhsae.sae.FlatSAE"),
        ({"sae": FLAT | {"features": 25}}, r"W_enc' is \(24, 16\), but sae.json describes \(25, 16\)"),
        ({"normalize": {"_target_": "jhsae.data.Scale"}}, r"'scale' is missing, but sae.json describes \(\)"),
        ({"normalize": {"_target_": "jhsae.data.Blank"}}, "has no Blank"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved, change, sentence):
    about = json.loads((saved / "sae.json").read_text())
    (saved / "sae.json").write_text(json.dumps(about | change))
    sealed(saved)
    with pytest.raises(UserError, match=sentence):
        load_sae(saved)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "names no format"),
        ('{"format": 2}', "'sae' is missing, expected a slot"),
    ],
)
def test_a_description_that_cannot_be_read_is_refused(saved, text, sentence):
    (saved / "sae.json").write_text(text)
    sealed(saved)
    with pytest.raises(UserError, match=sentence):
        load_sae(saved)


@pytest.mark.parametrize(
    ("file", "key", "value", "sentence"),
    [
        ("sae", "W_dec", None, r"sae.safetensors: 'W_dec' is missing, but sae.json describes \(24, 16\)"),
        ("sae", "b_enc", np.zeros(3, np.float32), r"'b_enc' is \(3,\), but sae.json describes \(24,\)"),
        ("sae", "W_gate", np.zeros(3, np.float32), r"'W_gate' is \(3,\), but sae.json describes no such tensor"),
        (
            "normalizer",
            "matrix",
            None,
            r"normalizer.safetensors: 'matrix' is missing, but sae.json describes \(16, 16\)",
        ),
        ("normalizer", "mean", np.zeros((16, 1), np.float32), r"'mean' is \(16, 1\), but sae.json describes \(16,\)"),
        ("normalizer", "std", np.zeros(16, np.float32), r"'std' is \(16,\), but sae.json describes no such tensor"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(saved, file, key, value, sentence):
    path = saved / f"{file}.safetensors"
    tensors = load_file(path)
    tensors.pop(key, None)
    save_file(tensors if value is None else tensors | {key: value}, path)
    sealed(saved)
    with pytest.raises(UserError, match=sentence):
        load_sae(saved)


@pytest.mark.parametrize("file", ["sae.safetensors", "normalizer.safetensors"])
def test_a_file_that_is_missing_or_damaged_is_refused(saved, file):
    (saved / file).write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match=rf"{file} cannot be read as safetensors: its header is cut short"):
        load_sae(saved)
    (saved / file).unlink()
    with pytest.raises(UserError, match=rf"there is no file .*{file}"):
        load_sae(saved)


def test_a_folder_without_an_sae_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no trained SAE in .*sae.json is missing"):
        load_sae(tmp_path)


def test_identity_needs_no_file_and_is_never_fitted():
    assert Identity().shapes(16) == {}


def test_what_is_said_beside_the_slots_has_a_type_or_is_refused():
    path = "sae.json"
    assert with_facts({"sae": FLAT}, path) == {"sae": FLAT, "reads": {"model": None, "layer": None}}
    assert with_facts({"reads": {"model": "m"}, "commit": None}, path)["reads"] == {"model": "m", "layer": None}
    for wrong, key in (
        ({"name": 3}, "name"),
        ({"reads": []}, "reads"),
        ({"reads": {"layer": -1}}, "reads.layer"),
        ({"reads": {"model": {}}}, "reads.model"),
        ({"store": {"sha256": 5}}, "store.sha256"),
        ({"versions": "1"}, "versions"),
        ({"config_hash": True}, "config_hash"),
    ):
        with pytest.raises(UserError, match=f"sae.json: '{key}' is .*; make it again"):
            with_facts(wrong, path)
