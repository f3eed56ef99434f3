"""SAELens's matching pursuit, in and out: codes, reconstructions and L0 of the same rows."""

import json
import warnings

import numpy as np
import pytest
from sealed import sealed
from small_saes import ABOUT, EMBED, FEATURES, change, configure, fitted, near, pursuit, rows, run, same

import jhsae
from jhsae.data import CenterScale, ConstantNorm, Identity, LayerNorm, Scale, Standardize, UnitNorm, Whiten
from jhsae.errors import UserError
from jhsae.interop import imported, saelens

pytestmark = pytest.mark.filterwarnings("default")  # sae_lens and what it imports warn about themselves

DATA = rows(256)
OPTIONS = {
    "threshold": {"residual_threshold": 0.5},
    "support": {"residual_threshold": 0.0},
    "iterations": {"max_iterations": 4, "residual_threshold": 0.0, "stop_on_duplicate_support": False},
    "outside": {"max_iterations": 6, "apply_b_dec_to_input": False},
}


@pytest.fixture(scope="module")
def sae_lens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens")


def theirs(sae_lens, folder, x):
    torch = pytest.importorskip("torch")
    sae = sae_lens.SAE.load_from_disk(folder)
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(x))
        return codes.numpy(), sae.decode(codes).numpy()


def equal(got, expected, scale=1.0):
    """Codes are those of `expected` times `scale`, where another unit of the input makes them."""
    near(got[0], scale * expected[0])
    near(got[1], expected[1])
    np.testing.assert_array_equal(np.count_nonzero(got[0], axis=1), np.count_nonzero(expected[0], axis=1))


@pytest.mark.few(8)
@pytest.mark.parametrize("normalizer", [Identity(), Scale(), ConstantNorm(), LayerNorm(), UnitNorm()], ids=repr)
@pytest.mark.parametrize("kind", OPTIONS)
def test_what_is_trained_here_saelens_computes_the_same(sae_lens, tmp_path, kind, normalizer):
    sae, normalizer = pursuit(**OPTIONS[kind]), fitted(normalizer)
    saelens.write(tmp_path / "out", sae, normalizer, ABOUT)
    scale = {Scale: lambda n: float(n.scale), UnitNorm: lambda n: EMBED**0.5}.get(type(normalizer), lambda n: 1.0)
    found = theirs(sae_lens, tmp_path / "out", DATA)
    equal(found, run(sae, normalizer, DATA), scale(normalizer))
    again = saelens.read(tmp_path / "out")
    same(run(again.sae, again.normalizer, DATA), found)


def test_a_mean_goes_into_the_bias_and_a_scale_per_dimension_is_refused(sae_lens, tmp_path):
    sae, normalizer = pursuit(residual_threshold=0.5), fitted(CenterScale())
    saelens.write(tmp_path / "out", sae, normalizer, ABOUT)
    equal(theirs(sae_lens, tmp_path / "out", DATA), run(sae, normalizer, DATA), float(normalizer.scale))
    for other in (Standardize(), Whiten()):
        with pytest.raises(UserError, match="scales dimensions apart, and the encoder of a MatchingPursuitSAE"):
            saelens.write(tmp_path / "other", sae, fitted(other), ABOUT)
    with pytest.raises(UserError, match="has no bias that could hold it"):
        saelens.write(tmp_path / "other", pursuit(apply_b_dec_to_input=False), normalizer, ABOUT)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("subtracted", [True, False], ids=["subtracted", "outside"])
def test_what_saelens_trained_is_read_and_computes_the_same(sae_lens, tmp_path, subtracted):
    torch = pytest.importorskip("torch")
    training, config = sae_lens.registry.get_sae_training_class("matching_pursuit")
    metadata = sae_lens.saes.sae.SAEMetadata(model_name="gemma-2-2b", hook_name="blocks.2.hook_resid_post")
    options = {"residual_threshold": 0.7, "decoder_init_norm": 1.0, "apply_b_dec_to_input": subtracted}
    sae = training(config(d_in=EMBED, d_sae=FEATURES, metadata=metadata, **options))
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-1, 1, EMBED))
    sae.save_inference_model(tmp_path / "inference")
    sae.save_model(tmp_path / "checkpoint")
    expected = theirs(sae_lens, tmp_path / "inference", DATA)
    for kind in ("inference", "checkpoint"):
        read = saelens.read(tmp_path / kind)
        same(run(read.sae, read.normalizer, DATA), expected)
    imported.save(read, tmp_path / "ours")
    loaded, normalizer, about = jhsae.load_sae(tmp_path / "ours")
    same(run(loaded, normalizer, DATA), expected)
    assert about["source"]["architecture"] == "matching_pursuit" and about["reads"]["layer"] == 3
    assert json.loads((tmp_path / "inference" / "cfg.json").read_text())["max_iterations"] is None


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda f: configure(f, max_iterations=0), "'max_iterations' is 0, expected at least 1"),
        (lambda f: configure(f, residual_threshold="low"), "'residual_threshold' is 'low', expected float"),
        (lambda f: configure(f, residual_threshold=-1.0), "residual_threshold is -1.0, expected at least 0"),
        (lambda f: change(f, lambda t: t.update(W_enc=t["W_dec"].T.copy())), "unknown tensor 'W_enc'"),
        (lambda f: change(f, lambda t: t.pop("b_dec")), "no tensor 'b_dec'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, edit, message):
    saelens.write(tmp_path / "out", pursuit(), Identity(), ABOUT)
    edit(tmp_path / "out")
    sealed(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        saelens.read(tmp_path / "out")
