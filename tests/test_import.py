"""``jhsae import``: the format told by the files, every reader reached, a run folder that the other verbs read."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from interop.small_saes import ABOUT, EMBED, FEATURES, fitted, flat, jump, rows, run
from safetensors.numpy import save_file

import jhsae
from jhsae import config as cfg
from jhsae.__main__ import main
from jhsae.commands import import_
from jhsae.commands.import_ import Import, detect
from jhsae.data import CenterScale, ConstantNorm
from jhsae.errors import UserError
from jhsae.interop import hub, saelens
from jhsae.sparsify import ReLU
from jhsae.training.checkpoint import save_sae

SLOT = {"_target_": "jhsae.sae.FlatSAE", "embed": EMBED, "features": FEATURES}
SLOT |= {"sparsifier": {"_target_": "jhsae.sparsify.ReLU"}}


def matrices(encoder: str, decoder: str, biases: dict[str, int], transposed: bool) -> dict[str, np.ndarray]:
    """Random tensors under the names of a format; both matrices have a row per feature, or none has."""
    rng = np.random.default_rng(0)
    shapes = {encoder: (FEATURES, EMBED), decoder: (FEATURES, EMBED)}
    tensors = {k: rng.normal(size=s[::-1] if transposed else s).astype(np.float32) for k, s in shapes.items()}
    return tensors | {k: rng.normal(size=n).astype(np.float32) for k, n in biases.items()}


def write_dictionary_learning(folder: Path) -> Path:
    tensors = matrices("encoder.weight", "decoder.weight", {"encoder.bias": FEATURES, "b_dec": EMBED}, False)
    tensors["decoder.weight"] = np.ascontiguousarray(tensors["decoder.weight"].T)
    save_file(tensors | {"k": np.asarray(3), "threshold": np.asarray(-1.0, np.float32)}, folder / "ae.safetensors")
    trainer = {
        "dict_class": "AutoEncoderTopK",
        "k": 3,
        "lm_name": "m",
        "layer": 4,
        "submodule_name": "resid_post_layer_4",
    }
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out"}}))
    return folder


def write_sparsify(folder: Path) -> Path:
    save_file(
        matrices("encoder.weight", "W_dec", {"encoder.bias": FEATURES, "b_dec": EMBED}, False),
        folder / "sae.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps({"d_in": EMBED, "num_latents": FEATURES, "k": 3}))
    return folder


def write_openai(folder: Path) -> Path:
    tensors = matrices("encoder.weight", "decoder.weight", {"latent_bias": FEATURES, "pre_bias": EMBED}, False)
    tensors["decoder.weight"] = np.ascontiguousarray(tensors["decoder.weight"].T)
    save_file(tensors, folder / "5.safetensors", metadata={"activation": "TopK", "k": "3"})
    return folder / "5.safetensors"


def write_gemma_scope(folder: Path) -> Path:
    tensors = matrices("W_enc", "W_dec", {"b_enc": FEATURES, "b_dec": EMBED, "threshold": FEATURES}, False)
    tensors["W_enc"] = np.ascontiguousarray(tensors["W_enc"].T)
    np.savez(folder / "params.npz", **tensors)
    return folder


def write_saelens(folder: Path) -> Path:
    saelens.write(folder / "in", jump(), ConstantNorm(), ABOUT)
    return folder / "in"


def write_jhsae(folder: Path) -> Path:
    slot = {"_target_": "jhsae.data.CenterScale"}
    save_sae(folder / "in" / "sae", flat(ReLU()), SLOT, slot, fitted(CenterScale()), ABOUT)
    return folder / "in"


WRITERS = {
    "saelens": write_saelens,
    "dictionary_learning": write_dictionary_learning,
    "sparsify": write_sparsify,
    "openai": write_openai,
    "gemma_scope": write_gemma_scope,
    "jhsae": write_jhsae,
}


def test_every_format_has_a_reader_and_a_test():
    assert WRITERS.keys() == import_.READERS.keys()


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_told_by_its_files_and_read(tmp_path, kind):
    source = WRITERS[kind](tmp_path)
    assert detect(source) == kind
    assert main(["import", f"source={source}", f"out={tmp_path / 'out'}"]) == 0
    found = import_.READERS[kind](source, False)
    sae, normalizer, about = jhsae.load_sae(tmp_path / "out")
    for got, expected in zip(run(sae, normalizer, rows()), run(found.sae, found.normalizer, rows()), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert about["source"]["format"] == kind and about["source"]["path"] == str(source)
    assert {"config_hash", "commit", "reads", "name"} <= about.keys()
    assert cfg.load(Import, tmp_path / "out" / "import.yaml") == Import(str(source), str(tmp_path / "out"))
    assert main(["import", f"source={source}", f"out={tmp_path / 'again'}", f"format={kind}"]) == 0


def test_a_foreign_sae_has_the_hash_of_its_import_and_ours_keeps_that_of_its_run(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    foreign = Import(str(write_saelens(tmp_path / "a")), str(tmp_path / "foreign"), model="m")
    about = jhsae.load_sae(import_.run(foreign))[2]
    assert about["config_hash"] == cfg.config_hash(foreign) and about["commit"] == cfg.provenance()["commit"]
    assert about["name"] == "foreign"
    ours = Import(str(write_jhsae(tmp_path / "b")), str(tmp_path / "ours"))
    about = jhsae.load_sae(import_.run(ours))[2]
    assert about["config_hash"] == ABOUT["config_hash"] and about["commit"] == ABOUT["commit"]


def test_model_and_layer_can_be_given_and_are_asked_for(tmp_path, capsys):
    source = write_sparsify(tmp_path)
    import_.run(Import(str(source), str(tmp_path / "unknown")))
    assert "model=... and layer=..." in capsys.readouterr().out
    import_.run(Import(str(source), str(tmp_path / "known"), model="embedded", layer=2))
    assert "model=..." not in capsys.readouterr().out
    assert jhsae.load_sae(tmp_path / "known")[2]["reads"] == {"model": "embedded", "layer": 2}


def test_the_hash_tells_sources_apart_and_not_where_it_is_written():
    assert cfg.config_hash(Import("a", "x")) == cfg.config_hash(Import("a", "y", unpickle=True))
    assert cfg.config_hash(Import("a", "x")) != cfg.config_hash(Import("b", "x"))


def test_a_folder_of_the_hub_is_pulled(tmp_path, monkeypatch):
    local, asked = write_saelens(tmp_path), []
    monkeypatch.setattr(hub, "pull", lambda *where: asked.append(where) or local)
    import_.run(Import("hf://org/name@main/some/folder", str(tmp_path / "out")))
    assert asked == [("org/name", "some/folder", "main")]
    assert jhsae.load_sae(tmp_path / "out")[2]["source"]["path"] == "hf://org/name@main/some/folder"


def test_out_and_back_in_computes_the_same(tmp_path):
    """Our run -> SAELens directory -> import: as raw activations see it, number for number."""
    sae, normalizer = jump(), fitted(CenterScale())
    saelens.write(tmp_path / "in", sae, normalizer, ABOUT)
    import_.run(Import(str(tmp_path / "in"), str(tmp_path / "out")))
    again, identity, about = jhsae.load_sae(tmp_path / "out")
    for got, expected in zip(run(again, identity, rows()), run(sae, normalizer, rows()), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert about["reads"] == ABOUT["reads"]
    assert jnp.issubdtype(again.W_enc.dtype, jnp.float32)


def test_what_cannot_be_told_is_said_with_what_was_found(tmp_path):
    with pytest.raises(UserError, match=r"has no files that tell their format \(it is empty\); write format="):
        detect(tmp_path)
    (tmp_path / "model.bin").touch()
    with pytest.raises(UserError, match=r"\(model.bin\)"):
        detect(tmp_path)
    for name in ("params.npz", "ae.pt"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"files of dictionary_learning and gemma_scope \(ae.pt, model.bin, params.npz\)"
    ):
        detect(tmp_path)
    (tmp_path / "5.pt").touch()
    with pytest.raises(UserError, match=r"no files that tell their format \(5.pt\)"):
        detect(tmp_path / "5.pt")
    (tmp_path / "5.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        detect(tmp_path / "5.safetensors")


@pytest.mark.parametrize("name", ["ae.pt", "ae_1000.pt", "ae.safetensors"])
def test_a_checkpoint_of_dictionary_learning_is_told_by_its_name(tmp_path, name):
    save_file({"k": np.zeros(1, np.float32)}, tmp_path / name)
    assert detect(tmp_path / name) == "dictionary_learning"


def test_bad_input_writes_nothing(tmp_path, capsys):
    source, out = write_saelens(tmp_path), f"out={tmp_path / 'out'}"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "ae.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "weights" / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoderTopK", "k": 3}}')
    cases = [
        ([f"source={tmp_path / 'none'}", out], "no file or folder"),
        ([f"source={tmp_path / 'weights'}", out], "unpickle"),
        ([f"source={source}", out, "format=gemma_scope"], "no params.npz"),
        ([f"source={source}", out, "format=onnx"], "format is 'onnx'"),
        ([f"source={source}", f"out={source}"], "exists already"),
        (["source=hf://org", out], "names no folder on the hub"),
        ([out], "jhsae import: source is missing"),
    ]
    for argv, sentence in cases:
        assert main(["import", *argv]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
