"""The pursuit gives what a plain one gives, token by token; on several devices what it gives on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from reference.pursuit import pursuit, refitted

from jhsae import ops
from jhsae.codes import Codes
from jhsae.ops.pool import first_largest
from jhsae.ops.pursuit import has_table, stage_ends

TOKENS, EMBED, PICKS = 21, 12, 7
SHAPES = [(30,), (6, 4), (5, 3, 2)]
SEARCHES = {  # levels, most_children, keep, growth and the score that a row must exceed
    "flat, threshold": ((30,), None, None, 1.0, 0.5),
    "two levels, exact, few sweeps": ((6, 4), None, 4, 1.5, 0.0),
    "two levels, one child": ((6, 4), 1, None, 1.0, 0.3),
    "three levels, threshold, few sweeps": ((5, 3, 2), None, None, 2.0, 0.3),
    "three levels, exact": ((5, 3, 2), None, 4, 1.0, 0.0),
}


def draw(levels, seed=0, empty=True):
    """Tokens and unit rows, a sixth of which are empty slots."""
    rng = np.random.default_rng(seed)
    forest = ops.Forest(levels)
    rows = rng.normal(size=(forest.size, EMBED))
    if empty:
        rows[rng.choice(forest.size, forest.size // 6, replace=False)] = 0
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return forest, rng.normal(size=(TOKENS, EMBED)).astype(np.float32), rows.astype(np.float32)


def dense(found, forest):
    return np.asarray(Codes(found.values, found.indices, forest.size).dense())


@pytest.mark.parametrize("levels", SHAPES, ids=str)
def test_a_forest_is_arithmetic(levels):
    forest = ops.Forest(levels)
    children = np.asarray(forest.children(jnp.arange(forest.size)))
    for row, own in enumerate(children):
        np.testing.assert_array_equal(own[own < forest.size], np.flatnonzero(forest.parents == row))
    assert forest.size == len(forest.parents) == sum(np.prod(levels[: i + 1]) for i in range(len(levels)))
    above = np.where(forest.parents < 0, -1, forest.level_of[forest.parents])
    np.testing.assert_array_equal(forest.level_of, above + 1)
    parts = forest.split(jnp.arange(forest.size))
    assert [part.shape[1] for part in parts] == list(levels)
    np.testing.assert_array_equal(np.concatenate([part.reshape(-1) for part in parts]), np.arange(forest.size))


@pytest.fixture(params=["by table", "by rows", "by rows, all pairs of a round"])
def products(request, monkeypatch):
    """How a pursuit has the products of rows; the last is the way of accelerators."""
    monkeypatch.setattr("jhsae.ops.vector_pool.on_cpu", lambda: "pairs" not in request.param)
    if "by rows" in request.param:
        monkeypatch.setattr("jhsae.ops.pursuit.READ_AGAIN", 0)
        monkeypatch.setattr("jhsae.ops.pursuit.TABLE", 0)


@pytest.mark.parametrize("kind", SEARCHES)
def test_every_token_has_the_codes_of_the_plain_pursuit(kind, products):
    """Where all roots compete, and where the candidates are all roots; in chunks of which one is short."""
    levels, most_children, keep, growth, least = SEARCHES[kind]
    forest, x, rows = draw(levels)
    after = ops.swept(PICKS, growth)
    want, entered, left = pursuit(
        x.astype(float), rows.astype(float), forest.parents, least, PICKS, most_children, keep, after=after
    )
    search = ops.Search(forest, PICKS, keep, most_children=most_children, growth=growth)
    assert np.ptp((want > 0).sum(1)) > 0 or keep
    for found in (
        jax.jit(lambda x, rows: ops.pursue(x, rows, least, search, 8))(x, rows),
        jax.jit(lambda x, rows: ops.screened(x, rows, least, search, 3, levels[0], 8))(x, rows),
    ):
        np.testing.assert_allclose(dense(found, forest), want, atol=2e-5)
        if keep is None:
            for token in range(TOKENS):
                scores = np.asarray(found.scores[token])
                np.testing.assert_allclose(scores[:-1][scores[:-1] > 0], entered[token], rtol=1e-4)
            np.testing.assert_allclose(found.scores[:, -1], np.maximum(left, 0), atol=1e-5)


@pytest.mark.parametrize("levels", [(60,), (20, 3)], ids=str)
def test_a_batch_without_tokens_has_codes_without_tokens(levels, products):
    forest, x, rows = draw(levels)
    x, rows, search = jnp.asarray(x[:0]), jnp.asarray(rows), ops.Search(forest, 12, 9)
    for found in (ops.pursue(x, rows, 0.3, search), ops.screened(x, rows, 0.3, search, 2, 12)):
        assert found.values.shape == (0, 12) and found.prefixes.shape == (0, len(levels) - 1, 12)


def test_sweeps_are_ever_further_apart():
    after = {growth: [pick for pick, on in enumerate(ops.swept(32, growth), 1) if on] for growth in (1.0, 1.5)}
    assert after[1.0] == list(range(1, 33)) and after[1.5] == [1, 2, 3, 5, 8, 12, 18, 27]


@pytest.mark.parametrize(("levels", "growth"), [((40,), 1.0), ((10, 3), 1.0), ((10, 3), 1.5)], ids=str)
def test_tokens_of_many_picks_go_on_alone(levels, growth, monkeypatch):
    """In blocks of 8 of the 24 tokens; a block without a token that has made 8 picks is left out."""
    monkeypatch.setattr("jhsae.ops.pursuit.BLOCK", 8)
    assert stage_ends(14) == (8, 14) and stage_ends(32) == (8, 16, 24, 32) and stage_ends(7) == (7,)
    forest, x, rows = draw(levels)
    x = np.concatenate([x, x[:3]]) * np.linspace(0.1, 2, 24, dtype=np.float32)[:, None]
    want, _, _ = pursuit(x.astype(float), rows.astype(float), forest.parents, 0.15, 14, after=ops.swept(14, growth))
    search = ops.Search(forest, 14, growth=growth)
    found = jax.jit(lambda x, rows: ops.pursue(x, rows, 0.15, search))(x, rows)
    used = np.asarray(found.scores[:, :-1] > 0).sum(1)
    assert used.max() > 8 < np.sum(used >= 8) <= 16
    np.testing.assert_allclose(dense(found, forest), want, atol=2e-5)


def test_prefixes_are_refitted_without_what_lies_below():
    forest, x, rows = draw((5, 3, 2))
    search = ops.Search(forest, PICKS, sweeps=200)
    found = jax.jit(lambda x, rows: ops.pursue(x, rows, 0.2, search))(x, rows)
    whole = dense(found, forest)
    np.testing.assert_allclose(whole, refitted(x.astype(float), rows.astype(float), whole), atol=1e-4)
    for level in range(2):
        kept = np.where(forest.level_of <= level, whole, 0.0)
        got = dense(found._replace(values=found.prefixes[:, level]), forest)
        np.testing.assert_allclose(got, refitted(x.astype(float), rows.astype(float), kept), atol=1e-4)
        assert np.abs(got - kept).max() > 0.1


@pytest.mark.parametrize("levels", [(30,), (8, 3, 1)], ids=str)
def test_a_screened_pursuit_is_the_plain_one_of_the_candidates_of_each_round(levels, products):
    """A round that picks nothing does not end the token, and no row enters twice; children are candidates by round."""
    forest, x, rows = draw(levels, empty=len(levels) > 1)
    search, candidates, least = ops.Search(forest, PICKS, sweeps=0, by_round=True), 4, 0.3
    found = jax.jit(lambda x, rows: ops.screened(x, rows, least, search, 3, candidates))(x, rows)
    assert ops.schedule(PICKS, 3) == (1, 2, 4) and ops.schedule(32, 3) == (4, 10, 18)
    for token in range(TOKENS):
        z, inside = np.zeros(forest.size), []
        for count in (1, 2, 4):
            scores = rows @ (x[token] - z @ rows)
            scores[inside] = -np.inf
            scores[[parent >= 0 and parent not in inside for parent in forest.parents]] = -np.inf
            near = np.argsort(-scores)[:candidates]
            for _ in range(count):
                is_open = np.isin(np.arange(forest.size), near) & ~np.isin(np.arange(forest.size), inside)
                now = np.where(is_open, rows @ (x[token] - z @ rows), -np.inf)
                if now[best := now.argmax()] > least:
                    z[best] = now[best]
                    for i in inside[::-1]:
                        z[i] = max(0.0, z[i] + rows[i] @ (x[token] - z @ rows))
                    inside.append(best)
        np.testing.assert_allclose(dense(found, forest)[token], z, atol=2e-5)


@pytest.mark.parametrize(("levels", "tokens"), [((32,), 16), ((8, 3, 1), 16), ((32,), 12)], ids=str)
def test_eight_devices_give_the_codes_of_one(levels, tokens, products):
    forest, x, rows = draw(levels)
    x = jnp.tile(x[:4], (tokens // 4, 1))
    search = ops.Search(forest, PICKS)
    mesh = jax.make_mesh((2, 2, 2), ops.SHARDS, axis_types=(AxisType.Auto,) * 3)

    def run(mesh, pursue):
        def on(x, rows):
            with ops.sharded_over(mesh):
                return pursue(x, rows)

        return jax.jit(on)(x, rows)

    for pursue in (
        lambda x, rows: ops.pursue(x, rows, 0.3, search),
        lambda x, rows: ops.screened(x, rows, 0.3, search, 2, min(8, levels[0])),
    ):
        one, eight = run(None, pursue), run(mesh, pursue)
        parts = {str(shard.index) for shard in eight.values.addressable_shards}
        assert len(parts) == (8 if tokens % 8 == 0 else 4)  # no token is pursued twice where the devices divide them
        np.testing.assert_array_equal(one.indices, eight.indices)
        for a, b in zip(one, eight, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_array_of_all_pairs_of_rows_exists_where_candidates_of_many_rows_are_screened(monkeypatch):
    monkeypatch.setattr("jhsae.ops.pursuit.TABLE", 29)
    forest, x, rows = draw((30,))

    def sizes(function):
        text = jax.jit(function).lower(x, rows).as_text()
        return "tensor<30x30xf32>" in text

    search = ops.Search(forest, PICKS)
    assert sizes(lambda x, rows: ops.pursue(x, rows, 0.3, search))
    assert not sizes(lambda x, rows: ops.screened(x, rows, 0.3, search, 2, 8))
    monkeypatch.setattr("jhsae.ops.pursuit.LARGEST", 29)
    assert not sizes(lambda x, rows: ops.pursue(x, rows, 0.3, search))


def test_many_rows_have_a_table_where_it_costs_less():
    deep, wide, flat = (ops.Search(ops.Forest(levels), 21) for levels in ((64, 5, 5, 5), (340, 12), (5000,)))
    assert not has_table(deep, 512) and has_table(deep, 8192)  # 9,984 rows, of which a token reads few
    assert has_table(wide, 512) and has_table(flat, 512)
    with ops.sized_for("tpu"):
        assert has_table(deep, 512)
        assert not has_table(ops.Search(ops.Forest((16385,)), 32), 2**20)


@pytest.mark.parametrize("n", [5, 128, 200])
def test_the_first_of_equal_entries_is_found(n):
    x = np.random.default_rng(0).integers(0, 4, (9, n)).astype(np.float32)
    x[0] = -np.inf
    place, best = first_largest(jnp.asarray(x))
    np.testing.assert_array_equal(place, x.argmax(1))
    np.testing.assert_array_equal(best, x.max(1))
