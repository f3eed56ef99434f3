"""SAELens loads the exported H-SAE, and computes what ours computes."""

import json
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hsaes import ABOUT, ATOMS, EMBED, EXPERTS, Case, case, combinations, inputs
from pursuits import LEVELS, pursuit

from jhsae import data
from jhsae.interop import torch_pursuit
from jhsae.sae import Residual, ScaledByParent
from jhsae.sparsify import OffsetTopK, TopK

pytestmark = pytest.mark.filterwarnings("default")  # sae_lens and what it imports warn about themselves

FEATURES = EXPERTS * (1 + ATOMS)
CASES = dict(list(combinations().items())[::9]) | {
    "scale": case(data.UnitNorm(), route=OffsetTopK(3, EMBED**-0.5)),
    "constant norm": case(data.ConstantNorm(), biases=("encoder",)),
    "whitened": case(data.Whiten(), child_input=Residual(), child_scale=ScaledByParent(), biases=("decoder",)),
}


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def sae_lens(torch) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("sae_lens")
        import jhsae.interop.saelens.plugin  # noqa: F401
    return found


def agrees(sae, made: Case, torch) -> None:
    codes, x_hat = made.expected(inputs())
    with torch.no_grad():
        f = sae.encode(torch.tensor(inputs()))
        got = sae.decode(f).numpy()
    np.testing.assert_array_equal(f.numpy() != 0, codes != 0)
    np.testing.assert_allclose(got, x_hat, rtol=1e-5, atol=1e-5 * np.abs(x_hat).max())


@pytest.mark.few(4)
@pytest.mark.parametrize("name", CASES)
def test_it_loads_and_computes_what_ours_computes(name: str, tmp_path: Path, sae_lens, torch):
    sae = sae_lens.SAE.load_from_disk(CASES[name].write(tmp_path / "sae"))
    agrees(sae, CASES[name], torch)


def test_it_is_the_torch_module_bit_for_bit(tmp_path: Path, sae_lens, torch):
    from jhsae.assets.torch.hsae import HSAE

    folder = case(data.CenterScale(), biases=("encoder", "decoder")).write(tmp_path / "sae")
    sae, module = sae_lens.SAE.load_from_disk(folder), HSAE.load(folder)
    x = torch.tensor(inputs()).reshape(4, 16, EMBED)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(sae, name), getattr(module, name)), name
    assert torch.equal(sae.encode(x), module.encode(x))
    assert torch.equal(sae(x), module(x))


def test_what_neuronpedia_reads(tmp_path: Path, sae_lens, torch):
    sae = sae_lens.SAE.load_from_disk(case(data.UnitNorm()).write(tmp_path / "sae"))
    assert sae.cfg.architecture() == "jhsae_hsae"
    assert sae.cfg.metadata.hook_name == "blocks.19.hook_resid_post"
    assert sae.cfg.metadata.hf_hook_name == "model.layers.19"
    assert sae.cfg.metadata.model_name == "google/gemma-2-2b"
    assert sae.cfg.rescale_acts_by_decoder_norm is False
    assert (sae.W_enc[:, 7].shape, sae.W_dec[7].shape, sae.cfg.d_sae) == ((EMBED,), (EMBED,), FEATURES)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(FEATURES))


def test_decoder_norms_are_folded_already(tmp_path: Path, sae_lens, torch):
    made = case(data.CenterScale(), biases=("decoder",))
    agrees(sae_lens.SAE.load_from_disk(made.write(tmp_path / "sae"), fold_W_dec_norm=True), made, torch)


def test_what_saelens_saves_loads_again_here_and_there(tmp_path: Path, sae_lens, torch):
    from jhsae.assets.torch.hsae import HSAE

    made = case(data.Whiten(), biases=("encoder", "decoder"), tie=("router",))
    sae = sae_lens.SAE.load_from_disk(made.write(tmp_path / "sae"))
    sae.save_model(tmp_path / "again")
    agrees(sae_lens.SAE.load_from_disk(tmp_path / "again"), made, torch)
    agrees(HSAE.load(tmp_path / "again"), made, torch)


def test_hooks_and_precision(tmp_path: Path, sae_lens, torch):
    sae = sae_lens.SAE.load_from_disk(case(pick=TopK(2)).write(tmp_path / "sae"), dtype="bfloat16")
    _, cache = sae.run_with_cache(torch.tensor(inputs()))
    assert cache["hook_sae_acts_post"].dtype == torch.bfloat16
    assert cache["hook_sae_acts_post"].shape == (len(inputs()), FEATURES)
    assert torch.equal(cache["hook_sae_recons"], sae.decode(cache["hook_sae_acts_post"]))


@pytest.mark.slow
def test_a_pursuit_is_its_torch_module_bit_for_bit_and_survives_saving(tmp_path: Path, sae_lens, torch):
    from jhsae.assets.torch.pursuit import Pursuit

    torch_pursuit.write(tmp_path / "sae", pursuit(LEVELS["three"], EMBED), data.Identity(), ABOUT)
    sae, module = sae_lens.SAE.load_from_disk(tmp_path / "sae"), Pursuit.load(tmp_path / "sae")
    assert sae.cfg.architecture() == "jhsae_pursuit" and sae.cfg.metadata.hook_name == "blocks.19.hook_resid_post"
    x = torch.tensor(inputs()).reshape(4, 16, EMBED)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(sae, name), getattr(module, name)), name
    assert torch.equal(sae.encode(x), module.encode(x)) and (sae.encode(x) != 0).any()
    assert torch.equal(sae(x), module(x))
    sae.save_model(tmp_path / "again")
    assert torch.equal(sae_lens.SAE.load_from_disk(tmp_path / "again")(x), module(x))


def test_refusals(tmp_path: Path, sae_lens, torch):
    folder = case().write(tmp_path / "sae")
    sae = sae_lens.SAE.load_from_disk(folder)
    with pytest.raises(NotImplementedError, match="reads raw activations"):
        sae.fold_activation_norm_scaling_factor(2.0)
    config = json.loads((folder / "cfg.json").read_text())
    del config["hsae"]["tensors"]["up"]
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no tensor 'up'; the two files belong to different exports"):
        sae_lens.SAE.load_from_disk(folder)
