"""The torch module that a pursuit is exported with computes what ours computes, with torch and nothing else."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hsaes import ABOUT
from pursuits import BUDGETS, CANDIDATES, LEVELS, pursuit
from sealed import sealed

from jhsae import data
from jhsae.errors import UserError
from jhsae.interop import torch_hsae, torch_pursuit
from jhsae.interop.torch_module import ASSETS
from jhsae.sae import FlatSAE
from jhsae.sparsify import MeanL0, Threshold, TopK

torch = pytest.importorskip("torch")

EMBED, TOKENS = 12, 300
CASES = [
    ("flat", "threshold", "all"),
    ("two", "exact", "all"),
    ("two", "threshold", "by round"),
    ("two", "threshold", "screened"),
    ("three", "exact", "screened"),
    ("three", "threshold", "all"),
]


def inputs() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (1.0 + rng.normal(size=(TOKENS, EMBED)) * np.linspace(0.5, 3, EMBED)).astype(np.float32)


def load(folder: Path, **options):
    from jhsae.assets.torch.pursuit import Pursuit

    return Pursuit.load(folder, **options)


def equals_ours(sae, normalizer, folder: Path) -> None:
    """Supports equal, codes to 1e-5, in our units: the module's are those times the norm of the row."""
    x = inputs()
    normalizer = normalizer.fit(data.ArrayRows(x))
    torch_pursuit.write(folder, sae, normalizer, ABOUT)
    inside, token = normalizer(jnp.asarray(x))
    codes = sae.encode(inside)
    expected = np.asarray(codes.dense())
    x_hat = np.asarray(normalizer.undo(sae.decode(codes), token))
    exported = load(folder)
    f = exported.encode(torch.tensor(x))
    np.testing.assert_array_equal(f.numpy() != 0, expected != 0)
    own = exported.structure(torch.tensor(x)).numpy()
    scale = 1.0 if exported.structure.settings["token_scale"] is None else np.asarray(token.scale)
    np.testing.assert_allclose(own, expected * scale, rtol=1e-5, atol=1e-5 * np.abs(own).max())
    np.testing.assert_allclose(exported.decode(f).numpy(), x_hat, rtol=1e-4, atol=1e-5 * np.abs(x_hat).max())
    live = np.asarray(sae.occupied)
    np.testing.assert_allclose(exported.W_dec.norm(dim=1).numpy()[live], 1.0, atol=1e-6)
    assert not f.numpy()[:, ~live].any() and 2 < (expected != 0).sum(1).mean() < 6


@pytest.mark.few(4)
@pytest.mark.parametrize(("levels", "budget", "candidates"), CASES)
def test_codes_equal_ours_for_every_depth_budget_and_candidate_rule(levels, budget, candidates, tmp_path: Path):
    sae = pursuit(LEVELS[levels], EMBED, BUDGETS[budget], CANDIDATES[candidates])
    equals_ours(sae, data.CenterScale(), tmp_path / "sae")


def test_at_most_so_many_children_of_one_row(tmp_path: Path):
    sae = pursuit(LEVELS["three"], EMBED, Threshold(0.01, 6), most_children=1, sweeps=0, growth=2.0)
    equals_ours(sae, data.CenterScale(), tmp_path / "sae")


@pytest.mark.parametrize("normalizer", [data.Whiten(), data.UnitNorm()], ids=lambda n: type(n).__name__)
def test_normalisers(normalizer, tmp_path: Path):
    sae = pursuit(LEVELS["two"], EMBED)
    if isinstance(normalizer, data.UnitNorm):
        sae = eqx.tree_at(lambda s: s.b_dec, sae, jnp.zeros(EMBED))
    equals_ours(sae, normalizer, tmp_path / "sae")


@pytest.mark.slow
def test_any_leading_shape_chunk_and_precision_will_do(tmp_path: Path, monkeypatch):
    import jhsae.assets.torch.pursuit as module

    torch_pursuit.write(tmp_path / "sae", pursuit(LEVELS["two"], EMBED), data.Identity(), ABOUT)
    x, exported = torch.tensor(inputs()), load(tmp_path / "sae")
    f = exported.encode(x)
    monkeypatch.setattr(module, "MOST", 7 * exported.cfg.d_sae)  # seven tokens at a time
    torch.testing.assert_close(exported.encode(x.reshape(3, 100, EMBED)).reshape(f.shape), f)
    for dtype, error in ((torch.float64, 1e-4), (torch.bfloat16, 0.1)):
        half = load(tmp_path / "sae", dtype=dtype)
        assert half.encode(x).dtype == dtype and half.cfg.dtype == str(dtype).removeprefix("torch.")
        assert (half(x).double() - exported(x)).abs().mean() < error * exported(x).abs().mean()


def test_the_flat_view_is_the_first_score_of_every_row(tmp_path: Path):
    x = inputs()
    normalizer = data.Whiten().fit(data.ArrayRows(x))
    sae = pursuit(LEVELS["two"], EMBED)
    torch_pursuit.write(tmp_path / "sae", sae, normalizer, ABOUT)
    exported = load(tmp_path / "sae")
    scores = (np.asarray(normalizer(jnp.asarray(x))[0]) - np.asarray(sae.b_dec)) @ np.asarray(sae.rows).T
    got = torch.tensor(x) @ exported.W_enc + exported.b_enc
    np.testing.assert_allclose(got.numpy(), scores * exported.norms.numpy(), atol=2e-4 * np.abs(got.numpy()).max())


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, numpy
from pursuit import Pursuit
sae = Pursuit.load(sys.argv[1])
numpy.save(sys.argv[3], sae.encode(torch.from_numpy(numpy.load(sys.argv[2]))).numpy())
for name in ("jhsae", "jax", "equinox", "safetensors", "sae_lens"):
    assert name not in sys.modules, name
"""


def test_the_written_folder_loads_with_torch_alone(tmp_path: Path):
    folder = tmp_path / "sae"
    torch_pursuit.write(folder, pursuit(LEVELS["three"], EMBED), data.Identity(), ABOUT)
    np.save(tmp_path / "x.npy", inputs())
    command = [sys.executable, "-I", "-B", "-c", ALONE, str(folder), str(tmp_path / "x.npy"), str(tmp_path / "f.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), load(folder).encode(torch.tensor(inputs())).numpy())
    readme = (folder / "README.md").read_text()
    assert "{" not in readme and "8 roots, then 3 below each of them, then 2 below" in readme
    assert len((folder / "pursuit.py").read_text().splitlines()) <= 400


def test_both_modules_have_what_they_share_once():
    """Each is one file that needs no other, so the code of shared.py stands in both, and every name in it once."""
    shared = ast.parse((ASSETS / "shared.py").read_text()).body
    code = {node.name: ast.dump(node) for node in shared if hasattr(node, "name")}
    assert {"opened", "small", "parsed", "read_safetensors", "verify", "Config", "Exported"} <= code.keys()
    for module in (torch_pursuit.MODULE, torch_hsae.MODULE):
        nodes = [node for node in ast.parse(module.text()).body if hasattr(node, "name")]
        written = {node.name: ast.dump(node) for node in nodes}
        assert code.items() <= written.items() and len(written) == len(nodes)
        assert "jhsae.assets" not in module.text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is of format 2, this module reads format 1; take the pursuit.py"),
        ({"levels": [8, 4]}, r"'levels' is \[8, 4\]"),
        ({"levels": [2**60, 2]}, "'levels'"),
        ({"budget": {"rule": "MeanL0"}}, "'budget' is .*MeanL0"),
        ({"budget": {"rule": "ExactL0", "k": 40, "extra": 0}}, "'budget'"),
        ({"screened": {"rounds": 99, "candidates": 2}}, "'screened'"),
        ({"screened": 3}, "'screened' is 3"),
        ({"screened": {"rounds": 2, "candidates": 2, "by_round": "no"}}, "'screened'"),
        ({"sweeps": -1}, "'sweeps' is -1"),
        ({"most_children": 0}, "'most_children' is 0"),
        ({"token_scale": {"eps": 0.0, "factor": 0.0}}, "'token_scale'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message, tmp_path: Path):
    folder = tmp_path / "sae"
    torch_pursuit.write(folder, pursuit(LEVELS["two"], EMBED), data.Identity(), ABOUT)
    config = json.loads((folder / "cfg.json").read_text())
    config["hsae"] |= change
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was changed"):
        load(folder)
    sealed(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_what_cannot_be_exported_is_refused(tmp_path: Path):
    trained = pursuit(LEVELS["two"], EMBED, MeanL0(2.0))
    with pytest.raises(UserError, match=r"budget is MeanL0.*export sae.for_inference"):
        torch_pursuit.write(tmp_path / "sae", trained, data.Identity(), ABOUT)
    with pytest.raises(UserError, match="UnitNorm scales every token"):
        torch_pursuit.write(tmp_path / "sae", pursuit(LEVELS["two"], EMBED), data.UnitNorm(), ABOUT)
    flat = FlatSAE(EMBED, 12, TopK(2), key=jax.random.key(0))
    with pytest.raises(UserError, match="FlatSAE is encoded by no pursuit"):
        torch_pursuit.write(tmp_path / "sae", flat, data.Identity(), ABOUT)
    assert list(tmp_path.iterdir()) == []
