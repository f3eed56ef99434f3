"""Rows that a caller gives: what is taken for activations, and by what sentence the rest is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.ops.inputs import as_rows, host_rows
from jhsae.sae import FlatSAE, GatedSAE, HierarchicalSAE, MatchingPursuitSAE, PursuitSAE
from jhsae.sae.base import check_codes
from jhsae.sparsify import ExactL0, TopK
from jhsae.training.fit import fit
from jhsae.usage import Context

EMBED, FEATURES = 6, 10
X = np.random.default_rng(0).normal(size=(8, EMBED)).astype(np.float32)
SAES = [
    FlatSAE(EMBED, FEATURES, TopK(2), key=jax.random.key(0)),
    GatedSAE(EMBED, FEATURES, key=jax.random.key(0)),
    MatchingPursuitSAE(EMBED, FEATURES, key=jax.random.key(0)),
    HierarchicalSAE(EMBED, 5, 2, 3, TopK(2), TopK(1), key=jax.random.key(0)),
]
PURSUIT = PursuitSAE(EMBED, [5, 3], ExactL0(3, extra=1), key=jax.random.key(0))
each = pytest.mark.parametrize("sae", SAES, ids=lambda s: type(s).__name__)


def with_bad(rows, value=np.nan):
    x = X.copy()
    x[rows] = value
    return x


@pytest.mark.parametrize(
    "x",
    [X, X.tolist(), X.astype(np.float64), jnp.asarray(X), X.astype(np.float16), X.astype(ml_dtypes.bfloat16), X[:0]],
    ids=["float32", "list", "float64", "jax", "float16", "bfloat16", "empty"],
)
def test_arrays_of_any_float_are_taken(x):
    assert host_rows(x).shape == as_rows(x, EMBED).shape == (len(x), EMBED)
    np.testing.assert_allclose(np.asarray(as_rows(x, EMBED), np.float32), X[: len(x)], rtol=1e-2)


@each
def test_no_rows_have_no_codes(sae):
    assert sae.encode(X[:0]).dense().shape == (0, sae.features) and sae(X[:0]).shape == (0, EMBED)


def test_bytes_in_the_order_of_another_machine_are_taken():
    np.testing.assert_array_equal(as_rows(X.astype(">f4"), EMBED), X)


def test_masked_numbers_are_no_numbers():
    with pytest.raises(UserError, match=r"x has masked numbers, expected whole rows"):
        host_rows(np.ma.masked_greater(X, 0))


def test_a_tensor_of_torch_is_taken():
    torch = pytest.importorskip("torch")
    for tensor in (torch.tensor(X), torch.tensor(X, requires_grad=True), torch.tensor(X).to(torch.bfloat16)):
        np.testing.assert_allclose(as_rows(tensor, EMBED), X, rtol=1e-2)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (X[:, :5], r"x has shape \[8, 5\], expected \[rows, 6\]"),
        (X[None, :, :5], r"x has shape \[1, 8, 5\], expected \[(..., |rows, )6\]"),
        (X[0, :5], r"x has shape \[5\], expected \[(..., |rows, )6\]"),
        (np.float32(3), r"x has shape \[\], expected"),
        ([], r"x has shape \[0\], expected"),
        ([[[1.0] * 5]], r"x has shape \[1, 1, 5\], expected"),
        ([[1.0], [1.0, 2.0]], "x is a list that is no array of numbers"),
        ("abc", r"x has shape \[\]|holds <U3"),
        ([["a"] * EMBED], r"x holds <U1, expected activations in a floating-point type"),
        (None, "x has shape"),
        (X.astype(np.int64), "x holds int64, expected activations in a floating-point type"),
        (X > 0, "x holds bool, expected"),
        (X.astype(np.complex64), "x holds complex64, expected"),
        (with_bad([3]), "x is not finite in 1 of 8 rows: 3; leave"),
        (with_bad(range(1, 8), np.inf), "x is not finite in 7 of 8 rows: 1, 2, 3, 4, 5 and 2 more; leave"),
        (np.full((2, EMBED), 1e300), "x is not finite in 2 of 2 rows: 0, 1; leave"),
        (jnp.asarray(with_bad([0, 7])), "x is not finite in 2 of 8 rows: 0, 7; leave"),
    ],
)
@each
def test_what_is_no_batch_of_activations_is_refused(sae, x, sentence):
    for door in (sae.encode, sae, lambda x: fit(sae, x, steps=1)):
        with pytest.raises(UserError, match=sentence):
            door(x)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (X[0], r"x has shape \[6\], expected \[rows, 6\]; write x\[None\] for one row"),
        (X[None], r"x has shape \[1, 8, 6\], expected \[rows, 6\]; write x.reshape\(-1, 6\)"),
    ],
)
def test_fit_takes_rows_alone(x, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(SAES[0], x, steps=1)


@pytest.mark.parametrize("axes", [(2, 4), (8, 1), (2, 2, 2), (0, 4), ()], ids=str)
@pytest.mark.parametrize("sae", [*SAES, PURSUIT], ids=lambda s: type(s).__name__)
def test_axes_before_the_last_are_kept(sae, axes):
    """Codes and reconstructions of [..., embed] are those of its rows, in the axes of the input; compiled too."""
    rows = X[: int(np.prod(axes))]
    codes, found = sae.encode(rows), sae.encode(rows.reshape(*axes, EMBED))
    for level, of_rows in zip(found.levels(), codes.levels(), strict=True):
        assert level.values.shape[: len(axes)] == axes
        np.testing.assert_array_equal(level.values.reshape(of_rows.values.shape), of_rows.values)
    np.testing.assert_array_equal(found.dense(), codes.dense().reshape(*axes, sae.features))
    np.testing.assert_array_equal(found.l0(), codes.l0().reshape(axes))
    np.testing.assert_array_equal(found.fired(), codes.fired())
    assert found.rows() == len(rows)
    x_hat = np.asarray(sae(rows)).reshape(*axes, EMBED)
    np.testing.assert_array_equal(sae.decode(found), sae.decode(codes).reshape(*axes, EMBED))
    np.testing.assert_allclose(sae.decode(found.flat()), x_hat, atol=1e-5)
    np.testing.assert_allclose(sae(rows.reshape(*axes, EMBED)), x_hat, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(lambda x: sae.decode(sae.encode(x)))(rows.reshape(*axes, EMBED)), x_hat, atol=1e-5
    )
    parents = np.asarray(sae.parent_values(codes))
    np.testing.assert_array_equal(sae.parent_values(found), parents.reshape(*axes, parents.shape[-1]))
    if len(axes) > 2:
        np.testing.assert_array_equal(sae.encode(rows.reshape(*axes, EMBED).tolist()).dense(), found.dense())


@pytest.mark.parametrize("sae", [*SAES, PURSUIT], ids=lambda s: type(s).__name__)
def test_axes_of_an_input_over_several_devices_are_kept(sae):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "other"))
    rows = np.concatenate([X, X])
    spread = jax.device_put(rows.reshape(2, 8, EMBED), NamedSharding(mesh, PartitionSpec("data", "other")))
    found = jax.jit(lambda x: (sae.encode(x).dense(), sae(x)))(spread)
    for array, of_rows in zip(found, (sae.encode(rows).dense(), sae(rows)), strict=True):
        np.testing.assert_allclose(array.reshape(of_rows.shape), of_rows, atol=1e-5)


@each
def test_widths_are_checked_inside_of_compiled_functions(sae):
    with pytest.raises(UserError, match=r"x has shape \[8, 5\], expected \[rows, 6\]"):
        jax.jit(lambda x: sae.encode(x).dense())(X[:, :5])
    with pytest.raises(UserError, match=r"x has shape \[8, 5\], expected \[rows, 6\]"):
        jax.jit(lambda x: sae.forward(x, Context()).x_hat)(X[:, :5])
    codes = sae.encode(X).flat()
    np.testing.assert_allclose(jax.jit(lambda x: sae.decode(sae.encode(x)))(X), sae.decode(codes), atol=1e-5)


@each
def test_codes_of_another_sae_are_refused(sae):
    dense = np.asarray(sae.encode(X).dense())
    np.testing.assert_allclose(sae.decode(Codes(jnp.asarray(dense), None, sae.features)), sae(X), atol=1e-5)
    with pytest.raises(UserError, match=rf"codes over {sae.features - 1} features .* has {sae.features} features"):
        sae.decode(Codes(jnp.asarray(dense[:, 1:]), None, sae.features - 1))
    torn = eqx.tree_at(lambda c: c.values, Codes(jnp.ones((8, 3)), jnp.zeros((8, 3), int), sae.features), jnp.ones(8))
    with pytest.raises(UserError, match="decode got codes over"):
        sae.decode(torn)
    with pytest.raises(UserError, match=r"decode got a ndarray, expected Codes.*Codes\(array, None, features\)"):
        check_codes(sae, dense)


def test_fit_needs_a_row():
    with pytest.raises(UserError, match="x has no rows, expected at least 1"):
        fit(SAES[0], X[:0], steps=1)
