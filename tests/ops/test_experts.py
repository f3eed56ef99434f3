import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference.jaxprs import largest

from jhsae import ops
from jhsae.codes import Codes, TreeCodes

BATCH, EMBED, EXPERTS, SUB, ATOMS, K, C = 11, 8, 6, 2, 3, 3, 2


def arrays(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    indices = jnp.asarray(np.stack([rng.permutation(EXPERTS)[:K] for _ in range(BATCH)]), jnp.int32)
    atoms = jnp.asarray(rng.integers(0, ATOMS, size=(BATCH, K, C)), jnp.int32)
    return {
        "x": normal(BATCH, EMBED),
        "indices": indices,
        "atoms": atoms,
        "parents": normal(BATCH, K),
        "children": normal(BATCH, K, C),
        "down": normal(EXPERTS, SUB, EMBED),
        "enc": normal(EXPERTS, ATOMS, SUB),
        "rows": normal(EXPERTS, EMBED),
    }


def encode(a, **how):
    return ops.encode_atoms(a["x"], a["indices"], ops.ExpertEncoders(a["down"], a["enc"]), **how)


def decode_atoms(a, **how):
    codes = TreeCodes(Codes(a["parents"], a["indices"], EXPERTS), Codes(a["children"], a["atoms"], ATOMS))
    return ops.decode_atoms(codes, ops.Decoder(a["rows"], a["down"], a["enc"]), **how)


def decode_rows(a, **how):
    return ops.decode_rows(Codes(a["parents"], a["indices"], EXPERTS), a["rows"], **how)


OPS = (encode, decode_atoms, decode_rows)


def test_encode_atoms_equals_a_loop_over_tokens_and_experts():
    a = {name: np.asarray(v, np.float64) for name, v in arrays().items()}
    got = encode(arrays())
    for b, j in np.ndindex(BATCH, K):
        e = int(a["indices"][b, j])
        np.testing.assert_allclose(got[b, j], a["enc"][e] @ (a["down"][e] @ a["x"][b]), rtol=1e-4, atol=1e-5)


def test_decode_atoms_equals_a_loop_over_tokens_experts_and_atoms():
    raw = arrays()
    a = {name: np.asarray(v, np.float64) for name, v in raw.items()}
    want = np.zeros((BATCH, EMBED))
    for b, j, c in np.ndindex(BATCH, K, C):
        e, atom = int(raw["indices"][b, j]), int(raw["atoms"][b, j, c])
        want[b] += a["children"][b, j, c] * (a["enc"][e, atom] @ a["down"][e])
    np.testing.assert_allclose(decode_atoms(raw), want, rtol=1e-4, atol=1e-5)


def test_decode_rows_equals_a_dense_product():
    a = arrays()
    dense = np.zeros((BATCH, EXPERTS))
    np.put_along_axis(dense, np.asarray(a["indices"]), np.asarray(a["parents"]), -1)
    np.testing.assert_allclose(decode_rows(a), dense @ np.asarray(a["rows"]), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=OPS)
def reference(request):
    """(op, value and gradients of its plain form as a function of the arguments that choose an implementation)."""
    a, integer = arrays(), {"indices", "atoms"}

    def loss(floats, how):
        out = request.param(floats | {n: a[n] for n in integer}, **how)
        return jnp.sum(jnp.sin(out)), out

    def gradient(**how):
        return jax.jit(jax.grad(lambda f: loss(f, how), has_aux=True))

    def run(**how):
        return gradient(**how)({n: v for n, v in a.items() if n not in integer})

    return run(), run


@pytest.mark.parametrize(
    "how",
    [
        {"kernel": "gather"},
        *({"kernel": "gather", "chunk": c} for c in (1, 4)),
        {"kernel": "dense"},
        {"kernel": "tiles"},
    ],  # 4 leaves a remainder of 3
    ids=lambda how: "-".join(f"{k}-{v}" for k, v in how.items()),
)
def test_every_implementation_gives_the_same_values_and_gradients(reference, how):
    (gradients, out), run = reference
    other_gradients, other = run(**how)
    np.testing.assert_allclose(other, out, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(other_gradients[name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("op", OPS[:2])
def test_a_chunk_bounds_the_rows_that_are_gathered_at_once(op):
    def tile(v):
        return jnp.tile(v, (6,) + (1,) * (v.ndim - 1))

    a = {n: tile(v) if n in {"x", "indices", "atoms", "parents", "children"} else v for n, v in arrays().items()}
    gathered = 6 * BATCH * K * SUB * EMBED
    weights = ("down", "enc")

    def peak(chunk):
        def loss(w):
            return jnp.sum(op(a | w, kernel="gather", chunk=chunk) ** 2)

        return largest(jax.make_jaxpr(jax.grad(loss))({n: a[n] for n in weights}))

    assert peak(None) >= gathered
    assert peak(2) < gathered / 4


@pytest.mark.parametrize("op", OPS)
def test_chunks_leave_every_device_its_own_tokens(op):
    """A chunk that holds the rows of one device alone would make every device work on every row."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over = {"x", "indices", "atoms", "parents", "children"}
    a = {n: jnp.concatenate([v, v[:5]]) if n in over else v for n, v in arrays().items()}
    spec = {n: NamedSharding(mesh, PartitionSpec("data" if n in over else None)) for n in a}
    out = NamedSharding(mesh, PartitionSpec("data"))
    program = (
        jax.jit(lambda a: op(a, kernel="gather", chunk=8), in_shardings=(spec,), out_shardings=out)
        .lower(a)
        .compile()
        .as_text()
    )
    assert "all-gather" not in program
