import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.codes import Codes, TreeCodes
from jhsae.ops import Decoder, ExpertEncoders, expert_major
from jhsae.ops import tiles as tiles_of
from jhsae.ops.tiles import _order, over_tiles, tile

BATCH, K, EXPERTS, ROWS = 40, 3, 12, 4


def distinct(experts, batch=BATCH):
    """K different experts for each token."""
    rng = np.random.default_rng(0)
    return np.stack([rng.choice(experts, K, replace=False) for _ in range(batch)]).astype(np.int32)


CASES = {
    "spread": distinct(EXPERTS),
    "few experts take all": distinct(K),
    "one expert takes all": np.full((BATCH, K), 7, np.int32),  # slots may share an expert
    "last expert": np.full((BATCH, K), EXPERTS - 1, np.int32),
    "one token": distinct(EXPERTS, 1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_every_pair_stands_once_in_a_tile_of_its_expert(case, rows):
    indices = CASES[case]
    tiles = jax.jit(tile, static_argnums=(1, 2))(indices, EXPERTS, rows)
    assert tiles.expert.shape == (indices.size // rows + EXPERTS,)
    pairs = np.asarray(tiles.pair)[np.asarray(tiles.live)]
    np.testing.assert_array_equal(np.sort(pairs), np.arange(indices.size))
    experts = np.broadcast_to(np.asarray(tiles.expert)[:, None], tiles.pair.shape)[np.asarray(tiles.live)]
    np.testing.assert_array_equal(experts, indices.reshape(-1)[pairs])
    np.testing.assert_array_equal(
        np.asarray(tiles.pair).reshape(-1)[np.asarray(tiles.place)].reshape(-1), np.arange(indices.size)
    )
    assert not np.asarray(tiles.live)[int(tiles.used) :].any()
    assert np.asarray(tiles.live)[: int(tiles.used)].any(axis=1).all()


def test_a_number_of_pairs_beyond_one_integer_is_sorted_the_same():
    """Expert and pair packed into one integer, and a stable argsort where they do not fit."""
    flat = jnp.asarray(CASES["spread"]).reshape(-1)
    wide = -(-(2**31) // flat.size)
    np.testing.assert_array_equal(_order(flat, EXPERTS), _order(flat, wide))
    np.testing.assert_array_equal(_order(flat, wide), np.argsort(flat, kind="stable"))


def test_loops_run_over_the_tiles_in_use_alone():
    tiles = tile(jnp.asarray(CASES["few experts take all"]), EXPERTS, ROWS).padded(4)
    assert tiles.expert.shape[0] % 4 == 0
    groups = over_tiles(tiles, 4, lambda n, some, first: n + 1, 0)
    assert int(groups) == -(-int(tiles.used) // 4) < tiles.expert.shape[0] // 4


@pytest.mark.few(6)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", [2, 1000], ids=["groups of two", "one group"])
def test_expert_major_equals_one_token_after_the_other(case, group, monkeypatch):
    """Values and all gradients, for any distribution over the experts: nothing is dropped."""
    monkeypatch.setattr(tiles_of, "CPU_BYTES", group * 4 * tiles_of.ROWS * 6)
    assert tiles_of.group_size(6) == group
    indices, rng = jnp.asarray(CASES[case]), np.random.default_rng(1)
    sizes = {"x": (len(indices), 6), "down": (EXPERTS, 2, 6), "enc": (EXPERTS, 5, 2), "out": (len(indices), K, 5)}
    a = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in sizes.items()}
    down, enc = (np.asarray(a[n], np.float64)[indices] for n in ("down", "enc"))
    x, g = np.asarray(a["x"], np.float64), np.asarray(a["out"], np.float64)

    def encode(x, down, enc):
        return expert_major.encode_atoms(x, indices, ExpertEncoders(down, enc))

    def backward(x, down, enc):
        return jax.vjp(encode, x, down, enc)[1](a["out"])

    hidden = np.einsum("bd,bksd->bks", x, down)
    dh = np.einsum("bka,bkas->bks", g, enc)
    want = [
        np.einsum("bks,bksd->bd", dh, down),
        summed(np.einsum("bks,bd->bksd", dh, x), indices),
        summed(np.einsum("bka,bks->bkas", g, hidden), indices),
    ]
    for got, expected in zip(jax.jit(backward)(a["x"], a["down"], a["enc"]), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        encode(a["x"], a["down"], a["enc"]),
        np.einsum("bks,bkas->bka", hidden, enc),
        rtol=1e-4,
        atol=1e-5,
    )

    codes = a["out"]  # and the other way: codes in, x the cotangent
    gradients = jax.jit(
        lambda codes, up, dec: jax.vjp(lambda *w: decode(w[0], indices, *w[1:]), codes, up, dec)[1](a["x"])
    )
    inside = np.einsum("bka,bkas->bks", g, enc)
    want = [
        np.einsum("bks,bkas->bka", hidden, enc),
        summed(np.einsum("bks,bd->bksd", inside, x), indices),
        summed(np.einsum("bka,bks->bkas", g, hidden), indices),
    ]
    for got, expected in zip(gradients(codes, a["down"], a["enc"]), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        decode(codes, indices, a["down"], a["enc"]),
        np.einsum("bks,bksd->bd", inside, down),
        rtol=1e-4,
        atol=1e-4,
    )


def decode(values, indices, up, atom_dec):
    """`expert_major.decode_atoms` of dense children, whose parents' values and rows it does not read."""
    parents = Codes(jnp.zeros(indices.shape), indices, len(up))
    codes = TreeCodes(parents, Codes(values, None, atom_dec.shape[1]))
    return expert_major.decode_atoms(codes, Decoder(up[:, 0], up, atom_dec))


def summed(pairs, indices):
    """Per-pair arrays, added up by expert."""
    out = np.zeros((EXPERTS, *pairs.shape[2:]))
    np.add.at(out, indices, pairs)
    return out
