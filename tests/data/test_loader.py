import json
from itertools import islice

import grain.checkpoint
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_stores import numbered

from jhsae.data import Batches, batches_per_epoch, make_loader
from jhsae.errors import UserError


def epochs(store, batch: int, count: int, **options) -> list[np.ndarray]:
    """The source rows of each of `count` epochs, in the order they are served."""
    per_epoch = batches_per_epoch(store, batch, options.get("streams", 1))
    loader = make_loader(store, batch, **({"seed": 0} | options))
    return [np.concatenate([b[:, 0] for b in islice(loader, per_epoch)]) for _ in range(count)]


@pytest.mark.parametrize(("rows", "batch", "window"), [(300, 10, 4), (301, 7, 1), (40, 40, 16), (299, 150, 3)])
def test_every_row_comes_once_per_epoch_up_to_the_dropped_remainder(tmp_path, rows, batch, window):
    store = numbered(tmp_path / "s", rows)
    served = epochs(store, batch, 3, window=window)
    for rows_of_epoch in served:
        assert len(rows_of_epoch) == rows // batch * batch
        assert len(set(rows_of_epoch.tolist())) == len(rows_of_epoch)
        assert set(rows_of_epoch.tolist()) <= set(range(rows))
    assert not np.array_equal(served[0], served[1]) and not np.array_equal(served[1], served[2])


def test_each_epoch_takes_the_chunks_in_another_order(tmp_path):
    served = epochs(numbered(tmp_path / "s", 400), 8, 3, window=1)
    first = [frozenset(rows[:8].tolist()) for rows in served]
    assert len(set(first)) == 3


def test_batches_are_float32_and_follow_the_seed(tmp_path):
    store = numbered(tmp_path / "s", 200, embed=5, dtype="bfloat16")
    first = next(make_loader(store, 16, 3))
    assert first.dtype == np.float32 and first.shape == (16, 5)
    np.testing.assert_array_equal(first, next(make_loader(store, 16, 3)))
    assert not np.array_equal(first, next(make_loader(store, 16, 4)))


def test_rows_are_well_mixed(tmp_path):
    order = epochs(numbered(tmp_path / "s", 1600, chunk_rows=16), 100, 1)[0]
    store_order = numbered(tmp_path / "t", 1600, chunk_rows=16).read(0, 1600)[:, 0]
    rank = np.empty(1600)
    rank[store_order.astype(int)] = np.arange(1600)
    assert abs(np.corrcoef(rank[order.astype(int)], np.arange(1600))[0, 1]) < 0.3
    per_batch = [len(set((rank[b.astype(int)] // 16).tolist())) for b in np.split(order, 16)]
    assert min(per_batch) > 10  # a batch of 100 rows mixes the chunks of its window of 16


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 6])
def test_however_many_hosts_read_it_the_batch_is_the_same(tmp_path, streams, hosts):
    """Within an epoch, at its end and in the next ones; each host its slice, and no more streams than that meets."""
    store = numbered(tmp_path / "s", 403)
    whole = Batches(store, 24, 5, streams=streams, window=2)
    parts = [Batches(store, 24, 5, host, hosts, streams, window=2) for host in range(hosts)]
    for step in (0, 1, 7, 15, 16, 17, 40):
        np.testing.assert_array_equal(np.concatenate([part[step] for part in parts]), whole[step])
    if hosts == streams:
        assert all(len(part._parts) == 1 for part in parts)


@pytest.mark.parametrize("streams", [2, 3])
def test_streams_share_the_rows_of_an_epoch(tmp_path, streams):
    store = numbered(tmp_path / "s", 403)
    for rows in epochs(store, 18, 2, streams=streams, window=2):
        assert len(set(rows.tolist())) == len(rows) > 403 - streams * (9 + 8)


def test_it_is_known_which_rows_a_batch_is_made_of(tmp_path):
    batches = Batches(numbered(tmp_path / "s", 403), 24, 5, host=1, hosts=2, streams=3)
    stored = numbered(tmp_path / "t", 403).read(0, 403)
    for step in (0, 3, 16, 40):
        np.testing.assert_array_equal(stored[batches.places(step)], batches[step])


@pytest.mark.parametrize("step", [0, 1, 13, 29, 30, 31, 75])
def test_resuming_is_exact_within_and_across_epochs(tmp_path, step):
    store = numbered(tmp_path / "s", 300)
    loader = make_loader(store, 10, 1, window=3)
    for _ in range(step):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    expected = list(islice(loader, 40))
    fresh = make_loader(store, 10, 1, window=3)
    next(fresh)
    fresh.set_state(state)
    np.testing.assert_array_equal(np.stack(list(islice(fresh, 40))), np.stack(expected))


def test_the_state_goes_through_an_orbax_checkpoint(tmp_path):
    store = numbered(tmp_path / "s", 300)
    loader = make_loader(store, 10, 1)
    for _ in range(35):
        next(loader)
    other = make_loader(store, 10, 1)
    with ocp.CheckpointManager(tmp_path / "c") as manager:
        manager.save(1, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(loader)))
        manager.wait_until_finished()
        expected = [next(loader) for _ in range(3)]
        manager.restore(1, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(other)))
    np.testing.assert_array_equal(np.stack([next(other) for _ in range(3)]), np.stack(expected))


def test_batches_that_a_host_cannot_fill_are_refused(tmp_path):
    store = numbered(tmp_path / "s", 100)
    for batch in (0, 101):
        with pytest.raises(UserError, match=f"a batch of {batch} was asked for, but .* 100 rows"):
            make_loader(store, batch, 0)
    with pytest.raises(UserError, match=r"gives \d+ rows in 4 streams; write a batch of 1 up to that"):
        make_loader(store, 104, 0, streams=4)
    for name, shared in (("hosts", {"hosts": 4}), ("streams", {"streams": 4})):
        with pytest.raises(UserError, match=f"a batch of 10 cannot be shared by 4 {name}; write a multiple of 4"):
            make_loader(store, 10, 0, **shared)
    with pytest.raises(UserError, match="host 2 of 2 hosts, expected 0 to 1"):
        make_loader(store, 10, 0, host=2, hosts=2)
    with pytest.raises(UserError, match="seed of the loader is -1"):
        make_loader(store, 10, -1)
