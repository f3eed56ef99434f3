"""Transcoders in circuit-tracer's files: numbers against ours, and read by circuit-tracer where it is installed.

``pip install --no-deps circuit-tracer==0.5.0`` is enough for its readers.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled
from safetensors.numpy import load_file

from jhsae.data import ArrayRows, Between, CenterScale, Scale, SideBySide, Standardize, UnitNorm, Whiten
from jhsae.errors import UserError
from jhsae.interop import circuit_tracer
from jhsae.sae import DecoderNormUnit, HierarchicalTranscoder, LinearSkip, NoSkip, Transcoder
from jhsae.sparsify import JumpReLU, ReLU, TopK

WIDTH, OWN, TOKENS = 6, 9, 20
KEY = jax.random.key(0)


def rows(size, seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(TOKENS, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)).astype(np.float32)


def about(*blocks):
    hooks = [{"hook": f"mlp_{way}", "layer": blocks[0]} for way in ("in", "out")]
    if len(blocks) > 1:
        hooks = [{"layer": None, "hooks": [f"mlp_{way}.{block}" for block in blocks]} for way in ("in", "out")]
    return {"reads": {"model": "google/gemma-2-2b"} | hooks[0], "writes": {"model": "google/gemma-2-2b"} | hooks[1]}


def transcoder(layers=1, rule=None, skip=None, seed=0):
    rule, skip = rule or JumpReLU(0.3), skip or NoSkip()
    size = {"layers": layers, "code_unit": DecoderNormUnit(), "skip": skip}
    sae = filled(lambda: Transcoder(WIDTH * layers, OWN * layers, rule, **size, key=KEY), seed)
    rules = tuple(eqx.tree_at(lambda r: [*r.thresholds], r, [jnp.abs(t) for t in r.thresholds]) for r in sae.rules)
    return eqx.tree_at(lambda s: s.rules, sae, rules)


def normalizer(layers, x, y, source=CenterScale, target=Standardize):
    def side(kind, data):
        if layers == 1:
            return kind().fit(ArrayRows(data))
        parts = [kind().fit(ArrayRows(part)) for part in np.split(data, layers, axis=1)]
        return SideBySide(parts, [WIDTH] * layers)

    return Between((WIDTH * layers, WIDTH * layers), side(source, x), side(target, y))


def ours(sae, norm, x):
    inside, token = norm(jnp.asarray(x))
    return np.asarray(norm.undo(sae(inside), token)), np.asarray(sae.encode(inside).dense())


def jumped(pre, thresholds):
    return np.maximum(pre, 0) if thresholds is None else pre * (pre > thresholds)


@pytest.mark.parametrize("rule", [ReLU(), JumpReLU(0.3)])
@pytest.mark.parametrize("target", [Scale, Whiten])
@pytest.mark.parametrize("skip", [NoSkip(), LinearSkip()])
def test_a_set_holds_the_same_function_of_raw_activations(tmp_path, rule, target, skip):
    loaded, expected, inputs = [], [], []
    for layer in range(2):
        x, y = rows(WIDTH, layer), rows(WIDTH, 10 + layer)
        sae, norm = transcoder(rule=rule, skip=skip, seed=layer), normalizer(1, x, y, Whiten, target)
        loaded.append((sae, norm, about(layer)))
        expected.append(ours(sae, norm, x))
        inputs.append(x)
    circuit_tracer.write(tmp_path / "set", loaded[::-1])
    for layer, (x, (y_hat, codes)) in enumerate(zip(inputs, expected, strict=True)):
        t = load_file(tmp_path / "set" / f"layer_{layer}.safetensors")
        found = jumped(x @ t["W_enc"].T + t["b_enc"], t.get("activation_function.threshold"))
        np.testing.assert_allclose(found, codes, atol=2e-4)
        skipped = x @ t["W_skip"].T if "W_skip" in t else 0
        np.testing.assert_allclose(found @ t["W_dec"] + t["b_dec"] + skipped, y_hat, rtol=1e-3, atol=1e-3)
    assert ("activation_function.threshold" in t) == isinstance(rule, JumpReLU)
    text = (tmp_path / "set" / "config.yaml").read_text()
    assert "model_kind: transcoder_set" in text and "feature_input_hook: mlp.hook_in" in text


def of_three_layers():
    x, y = rows(3 * WIDTH, 1), rows(3 * WIDTH, 2)
    return transcoder(3), normalizer(3, x, y), x


def test_a_cross_layer_transcoder_holds_the_same_function(tmp_path):
    sae, norm, x = of_three_layers()
    circuit_tracer.write(tmp_path / "clt", [(sae, norm, about(0, 1, 2))])
    y_hat, codes = ours(sae, norm, x)
    written = np.zeros_like(y_hat)
    for i in range(3):
        t = load_file(tmp_path / "clt" / f"W_enc_{i}.safetensors")
        dec = load_file(tmp_path / "clt" / f"W_dec_{i}.safetensors")[f"W_dec_{i}"]
        own = jumped(x[:, i * WIDTH : (i + 1) * WIDTH] @ t[f"W_enc_{i}"].T + t[f"b_enc_{i}"], t[f"threshold_{i}"])
        np.testing.assert_allclose(own, codes[:, i * OWN : (i + 1) * OWN], atol=2e-4)
        assert dec.shape == (OWN, 3 - i, WIDTH)
        written[:, i * WIDTH :] += np.einsum("tf,fld->tld", own, dec).reshape(TOKENS, -1)
        written[:, i * WIDTH : (i + 1) * WIDTH] += t[f"b_dec_{i}"]
    np.testing.assert_allclose(written, y_hat, rtol=1e-3, atol=1e-3)


def test_circuit_tracer_reads_a_set_and_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("circuit_tracer.transcoder.single_layer_transcoder")
    x, y = rows(WIDTH, 0), rows(WIDTH, 1)
    sae, norm = transcoder(skip=LinearSkip()), normalizer(1, x, y)
    circuit_tracer.write(tmp_path / "set", [(sae, norm, about(0))])
    paths = {0: str(tmp_path / "set" / "layer_0.safetensors")}
    found = theirs.load_transcoder_set(paths, "ours", "mlp.hook_in", "hook_mlp_out", device=torch.device("cpu"))
    y_hat, codes = ours(sae, norm, x)
    given = torch.tensor(x)[None]
    np.testing.assert_allclose(found.encode(given)[0].detach().numpy(), codes, atol=2e-4)
    read = found.decode(found.encode(given), given)[0].detach().numpy()
    np.testing.assert_allclose(read, y_hat, rtol=1e-3, atol=1e-3)
    parts = found.compute_attribution_components(given, zero_positions=slice(0, 0))
    np.testing.assert_allclose(parts["reconstruction"][0].detach().numpy(), y_hat, rtol=1e-3, atol=1e-3)


def test_circuit_tracer_reads_a_cross_layer_transcoder_and_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("circuit_tracer.transcoder.cross_layer_transcoder")
    sae, norm, x = of_three_layers()
    circuit_tracer.write(tmp_path / "clt", [(sae, norm, about(0, 1, 2))])
    found = theirs.load_clt(str(tmp_path / "clt"), device=torch.device("cpu"), dtype=torch.float32)
    y_hat, codes = ours(sae, norm, x)
    given = torch.tensor(x.reshape(TOKENS, 3, WIDTH)).transpose(0, 1).contiguous()
    read = found(given).detach().transpose(0, 1).reshape(TOKENS, -1).numpy()
    np.testing.assert_allclose(read, y_hat, rtol=1e-3, atol=1e-3)
    features = found.encode(given).detach().transpose(0, 1).reshape(TOKENS, -1).numpy()
    np.testing.assert_allclose(features, codes, atol=2e-4)


def test_what_circuit_tracer_has_no_place_for_is_refused(tmp_path):
    x, y = rows(WIDTH, 0), rows(WIDTH, 1)
    norm, plain = normalizer(1, x, y), transcoder()
    tree = HierarchicalTranscoder(WIDTH, 4, 2, 3, TopK(2), TopK(1), key=KEY)
    per_token = Between((WIDTH, WIDTH), UnitNorm())
    several = transcoder(3, skip=LinearSkip())
    residual = {"reads": {"model": "m", "layer": 0}, "writes": {"model": "m", "layer": 0, "hook": "mlp_out"}}
    for loaded, message in (
        ([(tree, norm, about(0))], "no place for a HierarchicalTranscoder: it reads flat transcoders alone"),
        ([(transcoder(rule=TopK(2)), norm, about(0))], "ReLU and JumpReLU alone, got TopK; train with"),
        ([(plain, per_token, about(0))], "scales every token by a number of its own"),
        ([(plain, norm, about(1))], r"MLPs of blocks \[1\], but circuit-tracer needs one of each block from 0 on"),
        ([(plain, norm, about(0)), (plain, norm, about(0))], r"blocks \[0, 0\]"),
        ([(plain, norm, residual)], "goes from resid.0 to mlp_out.0, but circuit-tracer replaces MLPs"),
        ([(several, norm, about(0, 1, 2))], "reads no skip connection of a cross-layer transcoder"),
        (
            [(plain, norm, about(0)), (plain, norm, about(1) | {"reads": about(1)["reads"] | {"model": "other"}})],
            "of go",
        ),
    ):
        with pytest.raises(UserError, match=message):
            circuit_tracer.write(tmp_path / "out", loaded)
        assert not (tmp_path / "out").exists()
