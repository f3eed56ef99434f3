import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hsaes import ABOUT, AFFINE, ATOMS, EMBED, EXPERTS, PER_TOKEN, case, combinations, inputs
from sealed import sealed

from jhsae import data
from jhsae.errors import UserError
from jhsae.files.checksums import NAME
from jhsae.interop import torch_hsae
from jhsae.sae import FlatSAE, Token
from jhsae.sparsify import BatchTopK, OffsetTopK, TopK

torch = pytest.importorskip("torch")

COMBINATIONS = combinations()


def load(folder: Path, **options):
    from jhsae.assets.torch.hsae import HSAE

    return HSAE.load(folder, **options)


def equals_ours(case, folder: Path, x: np.ndarray) -> None:
    codes, x_hat = case.expected(x)
    exported = load(case.write(folder))
    f = exported.encode(torch.tensor(x))
    np.testing.assert_array_equal(f.numpy() != 0, codes != 0)  # so L0 is the same for every token
    got = exported.decode(f).numpy()
    np.testing.assert_allclose(got, x_hat, rtol=1e-5, atol=1e-5 * np.abs(x_hat).max())
    np.testing.assert_allclose(exported.W_dec.norm(dim=1).numpy(), 1.0, atol=1e-6)
    np.testing.assert_array_equal(exported(torch.tensor(x)).numpy(), got)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_of_parts_equals_ours(name: str, tmp_path: Path):
    equals_ours(COMBINATIONS[name], tmp_path / "sae", inputs())


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalizer", AFFINE, ids=lambda n: type(n).__name__)
def test_normalisers_that_treat_all_tokens_alike(normalizer, apply_b_dec_to_input: bool, tmp_path: Path):
    biases = ("encoder", "decoder")
    equals_ours(case(normalizer, biases=biases, apply_b_dec_to_input=apply_b_dec_to_input), tmp_path / "s", inputs())


@pytest.mark.parametrize("biases", [(), ("encoder",)])
@pytest.mark.parametrize("normalizer", PER_TOKEN, ids=lambda n: type(n).__name__)
def test_a_scale_per_token_is_in_the_codes(normalizer, biases, tmp_path: Path):
    x = inputs().copy()
    x[0] = 0  # a token without a norm
    made = case(normalizer, biases=biases)
    equals_ours(made, tmp_path / "sae", x)
    exported = load(tmp_path / "sae")
    _, token = made.normalizer(jnp.asarray(x))
    codes, _ = made.expected(x)
    expected = codes * np.asarray(token.scale) * np.linalg.norm(np.asarray(made.sae.dictionary()), axis=1)
    np.testing.assert_allclose(exported.encode(torch.tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_decoder_bias_of_zeros_does_not_stand_in_the_way_of_a_scale_per_token(tmp_path: Path):
    made = case(data.UnitNorm(), biases=("decoder",))
    zero = eqx.tree_at(lambda sae: sae.b_dec, made.sae, jnp.zeros(EMBED))
    equals_ours(type(made)(zero, made.normalizer), tmp_path / "sae", inputs())


def test_decode_is_linear_and_any_leading_shape_will_do(tmp_path: Path):
    exported = load(case(data.Whiten(), biases=("decoder",)).write(tmp_path / "sae"))
    f = exported.encode(torch.tensor(inputs()))
    again = exported.encode(torch.tensor(inputs()).reshape(4, 16, EMBED))
    assert torch.equal(again.reshape(f.shape), f)
    both = exported.decode(f[:1]) + exported.decode(f[1:2]) - exported.b_dec
    np.testing.assert_allclose(exported.decode(f[:1] + f[1:2]), both, atol=1e-5)
    np.testing.assert_allclose(exported.decode(f), f @ exported.W_dec + exported.b_dec, atol=0)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalizer", AFFINE, ids=lambda n: type(n).__name__)
def test_the_flat_encoder_gives_the_active_codes_before_sparsification(
    normalizer, apply_b_dec_to_input, tmp_path: Path
):
    biases = ("encoder", "decoder")
    made = case(normalizer, pick=TopK(2), biases=biases, apply_b_dec_to_input=apply_b_dec_to_input)
    exported = load(made.write(tmp_path / "sae"))
    x = torch.tensor(inputs())
    f, pre = exported.encode(x), x @ exported.W_enc + exported.b_enc
    np.testing.assert_allclose(f[f != 0], pre[f != 0], rtol=1e-4, atol=1e-4)


def test_of_equal_experts_the_first_are_active(tmp_path: Path):
    made = case(route=TopK(2), biases=())
    same = jnp.broadcast_to(made.sae.router_enc[:1], made.sae.router_enc.shape)
    made = type(made)(eqx.tree_at(lambda sae: sae.router_enc, made.sae, same), made.normalizer)
    equals_ours(made, tmp_path / "sae", inputs())
    f = load(tmp_path / "sae").encode(torch.tensor(inputs()))[:, :EXPERTS]
    assert set(map(tuple, (f != 0).int().tolist())) == {(0, 0, 0, 0, 0, 0), (1, 1, 0, 0, 0, 0)}


def test_a_row_of_zeros_stays_one_and_counts(tmp_path: Path):
    made = case(biases=())
    rows = made.sae.router_dec.at[2].set(0.0)
    made = type(made)(eqx.tree_at(lambda sae: sae.router_dec, made.sae, rows), made.normalizer)
    codes, x_hat = made.expected(inputs())
    exported = load(made.write(tmp_path / "sae"))
    f = exported.encode(torch.tensor(inputs()))
    np.testing.assert_array_equal(f.numpy() != 0, codes != 0)
    assert np.any(codes[:, 2] != 0)
    np.testing.assert_allclose(exported.decode(f), x_hat, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype, tmp_path: Path):
    made = case(data.CenterScale(), biases=("encoder", "decoder"))
    _, x_hat = made.expected(inputs())
    exported = load(made.write(tmp_path / "sae"), dtype=dtype)
    assert exported.dtype == exported.encode(torch.tensor(inputs())).dtype == dtype
    assert exported.cfg.dtype == str(dtype).removeprefix("torch.")
    error = np.abs(exported(torch.tensor(inputs())).double().numpy() - x_hat).mean() / np.abs(x_hat).mean()
    assert error < (1e-6 if dtype == torch.float64 else 0.1)
    assert exported.to(torch.float32).cfg.dtype == "float32"


def test_cfg_is_what_saebench_reads_and_sets(tmp_path: Path):
    exported = load(case().write(tmp_path / "sae"))
    features = EXPERTS * (1 + ATOMS)
    assert (exported.cfg.d_in, exported.cfg.d_sae, exported.cfg.model_name) == (EMBED, features, "google/gemma-2-2b")
    assert (exported.cfg.hook_layer, exported.cfg.hook_name) == (19, "blocks.19.hook_resid_post")
    assert (exported.cfg.architecture, exported.cfg.dtype) == ("jhsae_hsae", "float32")
    shapes = {name: tuple(p.shape) for name, p in exported.named_parameters(recurse=False)}
    assert shapes == {"W_enc": (EMBED, features), "W_dec": (features, EMBED), "b_enc": (features,), "b_dec": (EMBED,)}
    exported.cfg.context_size = 128
    exported.cfg.metadata = object()  # SAEBench hangs one on that JSON cannot hold
    assert json.loads(json.dumps(exported.cfg.to_dict()))["context_size"] == 128


@pytest.mark.parametrize(
    ("layer", "hook", "number"),
    [(0, "blocks.0.hook_resid_pre", 0), (1, "blocks.0.hook_resid_post", 0), (None, None, None)],
)
def test_layers_count_the_blocks_that_have_run(layer, hook, number, tmp_path: Path):
    about = ABOUT | {"reads": {"model": "embedded", "layer": layer}}
    made = case()
    torch_hsae.write(tmp_path / "sae", made.sae, made.normalizer, about)
    cfg = load(tmp_path / "sae").cfg
    assert (cfg.hook_name, cfg.hook_layer) == (hook, number)


ALONE = """
import builtins, sys
sys.path.insert(0, sys.argv[1])
import torch
import numpy
x = torch.from_numpy(numpy.load(sys.argv[2]))
ordinary = builtins.__import__
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    top = name.split(".")[0]
    if (globals or {}).get("__name__") == "hsae" and top != "torch" and top not in sys.stdlib_module_names:
        raise ImportError("hsae.py imports " + name)
    return ordinary(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
from hsae import HSAE
sae = HSAE.load(sys.argv[1], device="cpu")
f = sae.encode(x)
numpy.savez(sys.argv[3], f=f.numpy(), x_hat=sae.decode(f).numpy())
builtins.__import__ = ordinary
for name in ("jhsae", "jax", "equinox", "safetensors", "sae_lens"):
    assert name not in sys.modules, name
"""


def test_the_written_folder_loads_with_torch_alone(tmp_path: Path):
    made = case(data.UnitNorm(), route=OffsetTopK(3, 0.1))
    folder = made.write(tmp_path / "sae")
    np.save(tmp_path / "x.npy", inputs())
    command = [sys.executable, "-I", "-B", "-c", ALONE, str(folder), str(tmp_path / "x.npy"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    codes, x_hat = made.expected(inputs())
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_array_equal(out["f"] != 0, codes != 0)
        np.testing.assert_allclose(out["x_hat"], x_hat, rtol=1e-5, atol=1e-5 * np.abs(x_hat).max())
    assert (folder / "hsae.py").read_text() == torch_hsae.MODULE.text()
    assert len(torch_hsae.MODULE.text().splitlines()) <= 400
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        NAME,
        "cfg.json",
        "hsae.py",
        "sae_weights.safetensors",
    ]
    readme = (folder / "README.md").read_text()
    assert "{" not in readme and "30 latents" in readme and "blocks.19.hook_resid_post" in readme


class Other(Token):
    """A part that the torch module does not know."""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: case(data.LayerNorm()), "LayerNorm subtracts each token's own mean.*train with data.normalize"),
        (lambda: case(data.UnitNorm(), biases=("decoder",)), "UnitNorm scales every token.*train without 'decoder'"),
        (lambda: case(data.ConstantNorm(), biases=("decoder",)), "ConstantNorm scales every token"),
        (lambda: case(route=BatchTopK(3.0)), "route is BatchTopK.*export sae.for_inference"),
        (lambda: case(child_input=Other()), "child_input is Other.*Token or Residual"),
    ],
)
def test_what_cannot_be_exported_is_refused(make, words: str, tmp_path: Path):
    with pytest.raises(UserError, match=words):
        make().write(tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []


def test_a_flat_sae_and_an_existing_folder_are_refused(tmp_path: Path):
    flat = FlatSAE(EMBED, 12, TopK(2), key=jax.random.key(0))
    with pytest.raises(UserError, match="FlatSAE has no experts"):
        torch_hsae.write(tmp_path / "sae", flat, data.Identity(), ABOUT)
    case().write(tmp_path / "sae")
    with pytest.raises(UserError, match="exists already"):
        case().write(tmp_path / "sae")


def test_files_that_are_damaged_or_do_not_belong_together_are_refused(tmp_path: Path):
    folder = case().write(tmp_path / "sae")
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-4], whole[:20], b"", b"PK\x03\x04" + bytes(100)):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match=r"sae_weights.safetensors is damaged or was changed"):
            load(folder)
        sealed(folder)
        with pytest.raises(ValueError, match=r"sae_weights.safetensors is no complete safetensors file"):
            load(folder)
    weights.write_bytes((case(biases=("encoder",)).write(tmp_path / "b") / "sae_weights.safetensors").read_bytes())
    sealed(folder)
    with pytest.raises(ValueError, match=r"'b_atom' has shape \[6, 4\], but cfg.json describes None"):
        load(folder)


@pytest.mark.parametrize("change", [lambda c: c["hsae"].update(format=2), lambda c: c.pop("hsae")])
def test_another_format_is_refused(change, tmp_path: Path):
    folder = case().write(tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    change(config)
    (folder / "cfg.json").write_text(json.dumps(config))
    sealed(folder)
    with pytest.raises(ValueError, match=r"cfg.json is of format (2|None), this module reads format 1"):
        load(folder)
