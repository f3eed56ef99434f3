"""SAELens directories: its library computes the same from what we write, and we from what it writes."""

import warnings
from pathlib import Path
from types import ModuleType

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_saes import ABOUT, AFFINE, EMBED, FEATURES, K, change, fitted, flat, rows, run, saes, same

import jhsae
from jhsae.data import ConstantNorm, LayerNorm, Scale, UnitNorm
from jhsae.errors import UserError
from jhsae.interop import imported, saelens
from jhsae.sae import DecoderNormUnit
from jhsae.sparsify import BatchTopK
from jhsae.usage import FeatureStats

pytestmark = pytest.mark.filterwarnings("default")  # sae_lens and what it imports warn about themselves

SAES = saes()
NORMALIZERS = [*AFFINE, ConstantNorm(), LayerNorm(), UnitNorm()]
TRAINED = ["standard", "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated"]
DATA = rows(512)


@pytest.fixture(scope="session")
def sae_lens() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens")


@pytest.fixture(scope="session")
def torch(sae_lens) -> ModuleType:
    return pytest.importorskip("torch")


def name(part) -> str:
    return type(part).__name__


def theirs(sae_lens, torch, folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and reconstructions of the directory as SAELens loads it."""
    sae = sae_lens.SAE.load_from_disk(folder)
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(x))
        return codes.numpy(), sae.decode(codes).numpy()


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=name)
@pytest.mark.parametrize("kind", SAES)
def test_what_is_trained_here_saelens_loads_and_computes_the_same(sae_lens, torch, tmp_path, kind, normalizer):
    sae, normalizer, folder = SAES[kind], fitted(normalizer), tmp_path / "out"
    saelens.write(folder, sae, normalizer, ABOUT)
    ours = run(sae, normalizer, DATA)
    same(theirs(sae_lens, torch, folder, DATA), ours)
    again = saelens.read(folder)
    same(run(again.sae, again.normalizer, DATA), ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("options", [{}, {"code_unit": DecoderNormUnit()}], ids=["plain", "unit"])
def test_a_settled_batch_topk_is_a_jumprelu_with_its_running_threshold(sae_lens, torch, tmp_path, options):
    usage = eqx.tree_at(lambda u: u.thresholds, FeatureStats.init(FEATURES), (jnp.float32(1.5),))
    sae = flat(BatchTopK(4.0), **options).for_inference(usage)
    saelens.write(tmp_path / "out", sae, fitted(Scale()), ABOUT)
    tensors = load_file(tmp_path / "out" / "sae_weights.safetensors")
    np.testing.assert_array_equal(tensors["threshold"], np.full(FEATURES, 1.5, np.float32))
    same(theirs(sae_lens, torch, tmp_path / "out", DATA), run(sae, fitted(Scale()), DATA))


def trained(sae_lens, torch, architecture: str, **options):
    """A TrainingSAE of SAELens with random weights, with the threshold that it would have after a while."""
    config_class = sae_lens.registry.get_sae_training_class(architecture)[1]
    own = {
        "topk": {"k": K},
        "batchtopk": {"k": 4.5},
        "matryoshka_batchtopk": {"k": 4.5, "matryoshka_widths": [10, FEATURES]},
    }
    metadata = sae_lens.saes.sae.SAEMetadata(model_name="gemma-2-2b", hook_name="blocks.2.hook_resid_post")
    config = config_class(d_in=EMBED, d_sae=FEATURES, metadata=metadata, **own.get(architecture, {}), **options)
    sae = sae_lens.registry.get_sae_training_class(architecture)[0](config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        if architecture == "jumprelu":
            sae.threshold.copy_(torch.linspace(-0.5, 2, FEATURES))  # below 0 before the first step has clamped it
        if "topk_threshold" in dict(sae.named_buffers()):
            sae.topk_threshold.fill_(1.25)
    return sae


@pytest.mark.parametrize("normalize", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("architecture", TRAINED)
@pytest.mark.parametrize("subtracted", [True, False], ids=["subtracted", "outside"])
def test_what_saelens_trained_is_read_and_computes_the_same(
    sae_lens, torch, tmp_path, architecture, normalize, subtracted
):
    options = {"normalize_activations": normalize, "apply_b_dec_to_input": subtracted}
    sae = trained(sae_lens, torch, architecture, **options)
    sae.save_inference_model(tmp_path / "inference")
    sae.save_model(tmp_path / "checkpoint")
    expected = theirs(sae_lens, torch, tmp_path / "inference", DATA)
    for kind in ("inference", "checkpoint"):
        read = saelens.read(tmp_path / kind)
        same(run(read.sae, read.normalizer, DATA), expected)
        imported.save(read, tmp_path / f"{kind}_ours")
        loaded, normalizer, about = jhsae.load_sae(tmp_path / f"{kind}_ours")
        same(run(loaded, normalizer, DATA), expected)
        assert about["reads"] == {"model": "google/gemma-2-2b", "layer": 3} and about["source"]["version"] == "6.54.12"


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_codes_in_the_unit_of_the_decoder_norms(sae_lens, torch, tmp_path, architecture, rescale):
    sae = trained(sae_lens, torch, architecture, rescale_acts_by_decoder_norm=rescale)
    sae.save_inference_model(tmp_path / "inference")
    sae.save_model(tmp_path / "checkpoint")
    read = saelens.read(tmp_path / "checkpoint")
    same(run(read.sae, read.normalizer, DATA), theirs(sae_lens, torch, tmp_path / "inference", DATA))
    assert name(read.sae.code_unit) == ("DecoderNormUnit" if rescale else "PlainUnit")


def scaler(sae_lens, torch, kind: str):
    """SAELens's own estimate on `DATA`."""
    found, batches = sae_lens.training.activation_scaler.ActivationScaler(), iter(torch.from_numpy(DATA).split(128))
    estimate = {"expected_average_only_in": "estimate_scaling_factor", "covariance_whitening": "estimate_whitening"}
    getattr(found, estimate[kind])(EMBED, batches, 4)
    return found


@pytest.mark.parametrize("kind", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("architecture", TRAINED)
def test_statistics_of_a_checkpoint_are_read_with_it(sae_lens, torch, tmp_path, architecture, kind):
    sae, scale = trained(sae_lens, torch, architecture, normalize_activations=kind), scaler(sae_lens, torch, kind)
    sae.save_model(tmp_path / "checkpoint")
    scale.save(str(tmp_path / "checkpoint" / "activation_scaler.json"))
    sae.save_inference_model(tmp_path / "inference")
    loaded = sae_lens.SAE.load_from_disk(tmp_path / "inference")  # has no normaliser: SAELens scales outside of it
    with torch.no_grad():
        codes = loaded.encode(scale(torch.from_numpy(DATA)))
        expected = codes.numpy(), scale.unscale(loaded.decode(codes)).numpy()
    read = saelens.read(tmp_path / "checkpoint")
    same(run(read.sae, read.normalizer, DATA), expected)
    imported.save(read, tmp_path / "ours")
    loaded, normalizer, _ = jhsae.load_sae(tmp_path / "ours")
    same(run(loaded, normalizer, DATA), expected)
    with pytest.raises(UserError, match=r"cfg.json: normalize_activations wants statistics .* has none"):
        saelens.read(tmp_path / "inference")


def test_an_old_checkpoint_holds_the_logarithm_of_the_threshold(sae_lens, torch, tmp_path):
    sae = trained(sae_lens, torch, "jumprelu")
    with torch.no_grad():
        sae.threshold.abs_()
    sae.save_inference_model(tmp_path / "inference")
    sae.save_model(tmp_path / "checkpoint")
    change(tmp_path / "checkpoint", lambda t: t.update(log_threshold=np.log(t.pop("threshold"))))
    read = saelens.read(tmp_path / "checkpoint")
    same(run(read.sae, read.normalizer, DATA), theirs(sae_lens, torch, tmp_path / "inference", DATA))
