"""SAEBench's core evaluation, unmodified, gives the exported H-SAE the numbers that ours give it."""

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from lm.tiny import TIME, tiny
from pursuits import pursuit
from reference.filled import filled

from jhsae import data, lm
from jhsae.interop import torch_hsae, torch_pursuit
from jhsae.sae import HierarchicalSAE
from jhsae.sparsify import TopK

pytestmark = pytest.mark.filterwarnings("default")  # theirs and what they import warn about themselves

SCRIPT = Path(__file__).parents[2] / "experiments" / "saebench" / "core.py"
LAYER, SEQUENCES, BATCH = 2, 8, 4


@pytest.fixture(scope="module")
def core() -> ModuleType:
    """The experiment's script."""
    for package in ("torch", "sae_lens", "sae_bench"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}")
    spec = importlib.util.spec_from_file_location("saebench_core", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, lm.LanguageModel]:
    folder = tmp_path_factory.mktemp("lm") / "tiny"
    lm.save(*tiny(), folder, dtype=np.float32)
    return folder, lm.load(folder)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Sequences that start with BOS and have an EOS inside."""
    drawn = np.random.default_rng(2).integers(4, 31, size=(SEQUENCES, TIME))
    drawn[:, 0], drawn[:, 5] = 2, 1
    return drawn


@pytest.mark.slow
def test_the_language_model_is_the_same_in_transformerlens(core, model, tokens):
    torch = pytest.importorskip("torch")
    folder, ours = model
    with torch.no_grad():
        logits = core.hooked(folder, ours, TIME)(torch.tensor(tokens)).numpy()
    np.testing.assert_allclose(logits, np.asarray(ours.model(jax.numpy.asarray(tokens))), atol=1e-4)


def agree(core, exported, own, model, tokens, ignore) -> None:
    """SAEBench's numbers of the exported SAE are ours of our own: an SAE and its normaliser."""
    folder, ours = model
    theirs, features = core.saebench(exported, core.hooked(folder, ours, TIME), tokens, ignore, BATCH)
    here, frequency = core.ours(*own, ours.model, LAYER, tokens, ignore, BATCH)
    assert 0.5 < here["l0"] < 6
    for name, pair in core.compared(theirs, here).items():
        if name != "ce_loss_score":  # a random model gains nothing from its residual stream: 0 / 0
            assert pair["difference"] < 1e-4, (name, pair)
    np.testing.assert_allclose(features["feature_density"], frequency, atol=1e-6)


@pytest.mark.parametrize("ignore", [set(), {0, 1, 2, 3}], ids=["all positions", "ordinary positions"])
def test_l0_explained_variance_and_cross_entropies_are_equal(ignore: set[int], core, model, tokens, tmp_path: Path):
    sae = filled(lambda: HierarchicalSAE(16, 10, 2, 4, TopK(3), TopK(1), key=jax.random.key(0)), scale=0.3)
    normalizer = data.UnitNorm()
    about = {"name": "run", "reads": {"model": "tiny", "layer": LAYER}}
    torch_hsae.write(tmp_path / "sae", sae, normalizer, about)
    agree(core, core.HSAE.load(tmp_path / "sae"), (sae, normalizer), model, tokens, ignore)


def test_a_pursuit_has_equal_numbers_too(core, model, tokens, tmp_path: Path):
    from jhsae.assets.torch.pursuit import Pursuit

    sae = pursuit((10, 4), 16)
    torch_pursuit.write(
        tmp_path / "sae", sae, data.Identity(), {"name": "run", "reads": {"model": "tiny", "layer": LAYER}}
    )
    agree(core, Pursuit.load(tmp_path / "sae"), (sae, data.Identity()), model, tokens, set())
