"""A checkpoint comes back as it was, on any mesh, or not at all: then the one before it does."""

import gc
import json
import random
import resource
import shutil
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_process import in_own_process

from jhsae.errors import UserError
from jhsae.optimizer import adam
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.sae import FlatSAE
from jhsae.sparsify import TopK
from jhsae.training.checkpoint import Checkpoints, DamagedError
from jhsae.training.fingerprint import fingerprints
from jhsae.training.sharding import abstract_state, init_sharded
from jhsae.training.step import TrainState

MESH = make_mesh(MeshShape(data=2, expert=4))
ONE = make_mesh(MeshShape(), devices=1)
ABOUT = "about/metadata"


def start(features=256, embed=32):
    return TrainState.init(FlatSAE(embed, features, TopK(2), key=jax.random.key(0)), adam(), jax.random.key(1))


def at(state, step):
    """The state as it could be after `step` updates: every number another."""
    moved = jax.tree.map(lambda a: a + step if eqx.is_inexact_array(a) else a, state)
    return eqx.tree_at(lambda s: s.step, moved, jnp.asarray(step, jnp.int32))


def bits(state):
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a).tobytes()
        for a in leaves
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 3 and 6, saved on 2 x 4 devices, and what was saved in them."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    states = {step: at(init_sharded(start, MESH), step) for step in (3, 6)}
    with Checkpoints(folder) as checkpoints:
        for step, state in states.items():
            checkpoints.save(state, {"next_index": step})
    return SimpleNamespace(folder=folder, bits={step: bits(state) for step, state in states.items()})


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved.folder, tmp_path / "checkpoints")


def resumed(folder, mesh=MESH, make=start):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.resume(abstract_state(make, mesh))


@pytest.mark.parametrize(("data", "expert", "devices"), [(2, 4, 8), (8, 1, 8), (1, 8, 8), (4, 1, 4), (1, 1, 1)])
def test_it_comes_back_bit_for_bit_on_any_mesh(saved, data, expert, devices):
    mesh = make_mesh(MeshShape(data, expert), devices=devices)
    state, loader = resumed(saved.folder, mesh)
    assert loader == {"next_index": 6}
    assert bits(state) == saved.bits[6]
    assert state.sae.W_enc.sharding.shard_shape((256, 32)) == (256 // expert, 32)


def test_there_may_be_none(tmp_path):
    assert resumed(tmp_path / "checkpoints") is None


def largest(folder):
    """The largest file of numbers."""
    return max((folder / "state" / "ocdbt.process_0" / "d").iterdir(), key=lambda file: file.stat().st_size)


def delete(folder):
    largest(folder).unlink()


def truncate(folder):
    file = largest(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(folder):
    file = largest(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    file.write_bytes(bytes(content))


def empty_about(folder):
    (folder / ABOUT).write_text("{}")


def another_number(folder):
    """As if the disk had returned other data without an error."""
    about = json.loads((folder / ABOUT).read_text())
    del about["sha256"]  # as versions before wrote it
    name = next(name for name in about["arrays"] if "W_dec" in name)
    about["arrays"][name]["fingerprint"] ^= 1
    (folder / ABOUT).write_text(json.dumps(about))


def no_state(folder):
    shutil.rmtree(folder / "state")


def no_metadata(folder):
    (folder / "state" / "_METADATA").unlink()


@pytest.mark.parametrize(
    "damage",
    [delete, truncate, overwrite, empty_about, another_number, no_state, no_metadata],
    ids=lambda f: f.__name__,
)
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(saved, copied, caplog, damage):
    damage(copied / "6")
    state, loader = resumed(copied)
    assert loader == {"next_index": 3} and bits(state) == saved.bits[3]
    assert "the checkpoint of step 6 is damaged" in caplog.text and "the run continues from step 3" in caplog.text
    assert (copied / "6.damaged").is_dir() and not (copied / "6").exists()
    with Checkpoints(copied) as checkpoints:  # and that step can be saved again
        checkpoints.save(at(state, 6), {"next_index": 6})
        assert checkpoints.steps() == [3, 6]


def test_a_bit_changed_or_a_file_replaced_anywhere_costs_one_checkpoint_at_most(saved, copied):
    """The newest comes back as it was, or the one before it does."""
    chance = random.Random(0)
    files = sorted(file.relative_to(copied) for file in (copied / "6").rglob("*") if file.is_file())
    metadata = [file for file in files if file.parts[1] != "state" or file.name[:2] in ("_M", "_s", "ma")]
    whole, fell_back = copied.with_name("whole"), 0
    shutil.copytree(copied, whole)
    for number in range(12):
        file = copied / chance.choice(metadata if number % 2 else files)
        content = bytearray(file.read_bytes())
        if number < 9:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(bytes(content))
        else:
            file.unlink()
            file.mkdir()
        state, loader = resumed(copied)
        assert bits(state) == saved.bits[loader["next_index"]], file
        fell_back += loader["next_index"] == 3
        shutil.rmtree(copied)
        shutil.copytree(whole, copied)
    assert 0 < fell_back < 12


@pytest.mark.parametrize(
    "change",
    [
        {"loader": {"next_index": "6"}},
        {"loader": {"next_index": -1}},
        {"loader": {"nextindex": 6}},
        {"loader": [6]},
        {"arrays": []},
        {"arrays": {".step": {"shape": []}}},
        {"more": 1},
    ],
    ids=str,
)
def test_what_a_checkpoint_says_of_itself_must_be_possible(saved, copied, change):
    """In one of an older version, which has no checksum of that."""
    path = copied / "6" / ABOUT
    about = json.loads(path.read_text())
    del about["sha256"]
    path.write_text(json.dumps(about | change))
    state, loader = resumed(copied)
    assert loader == {"next_index": 3} and bits(state) == saved.bits[3]


def test_a_checkpoint_of_an_older_version_is_read(saved, copied):
    path = copied / "6" / ABOUT
    about = json.loads(path.read_text())
    del about["sha256"]
    path.write_text(json.dumps(about))
    assert resumed(copied)[1] == {"next_index": 6}


def test_when_all_are_damaged_it_does_not_begin_anew(copied):
    for step in ("3", "6"):
        truncate(copied / step)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(step 6: .*write another out=... to start"):
        resumed(copied)
    assert {f.name for f in copied.iterdir()} == {"3", "6"}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: start(features=40), r"holds float32\[256, 32\] at .*W_enc where the run needs float32\[40, 32\]"),
        (
            lambda: jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, start()),
            r"holds float32\[256, 32\] at .*W_enc where the run needs bfloat16\[256, 32\]; resume with its own config",
        ),
        (
            lambda: eqx.tree_at(lambda s: s.usage.thresholds, start(), ()),
            r"holds float32\[\] at .*the run needs nothing",
        ),
    ],
)
def test_another_shape_dtype_or_leaf_is_refused_and_nothing_is_set_aside(saved, make, sentence):
    with pytest.raises(UserError, match=sentence):
        resumed(saved.folder, ONE, make)
    assert {f.name for f in saved.folder.iterdir()} == {"3", "6"}


def test_what_a_killed_save_left_behind_is_removed(copied):
    (copied / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert resumed(copied)[1] == {"next_index": 6}
    assert {f.name for f in copied.iterdir()} == {"3", "6"}


def test_a_step_is_not_saved_twice(copied):
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(RuntimeError, match="the checkpoint of step 6 was not written"):
            checkpoints.save(at(init_sharded(start, ONE), 6), {})
        assert checkpoints.latest() == 6


def big():
    return start(features=2048)


def fails_on_a_full_disk(folder) -> None:
    """No file may grow beyond 64 KiB while the second save is written: the system refuses, as a full disk does."""
    state, limits = init_sharded(big, ONE), resource.getrlimit(resource.RLIMIT_FSIZE)
    sentence = r"cannot be written to .* \(.*too large.*\); the newest complete one is that of step 1; make room there"
    with pytest.raises(UserError, match=sentence), Checkpoints(folder, max_to_keep=1) as checkpoints:
        checkpoints.save(at(state, 1), {})
        assert checkpoints.steps() == [1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        checkpoints.save(at(state, 2), {})


@pytest.mark.slow
def test_a_full_disk_loses_no_complete_checkpoint(tmp_path):
    in_own_process(fails_on_a_full_disk, tmp_path / "c")
    again, _ = resumed(tmp_path / "c", ONE, big)
    assert bits(again) == bits(at(init_sharded(big, ONE), 1))


def test_a_checkpoint_names_the_array_that_came_back_otherwise(copied):
    another_number(copied / "6")
    with (
        Checkpoints(copied) as checkpoints,
        pytest.raises(DamagedError, match=r"the checksum of .*W_dec differs from the saved one"),
    ):
        checkpoints.restore(abstract_state(start, MESH), 6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_fingerprint_sees_every_element_and_no_layout(dtype):
    a = jax.random.bernoulli(jax.random.key(0), 0.5, (6, 5)).astype(dtype)
    whole = fingerprints(a)[""]["fingerprint"]
    seen = {whole}
    for i in range(30):
        place = i // 5, i % 5
        seen.add(fingerprints(a.at[place].set((a[place] == 0).astype(dtype)))[""]["fingerprint"])
    assert len(seen) == 31
    unsigned = np.asarray(a.astype(jnp.uint8) if dtype == "bool" else a)
    unsigned = unsigned.view(f"uint{8 * unsigned.itemsize}").reshape(-1).tolist()
    assert whole == sum(b * (2 * i + 1) for i, b in enumerate(unsigned)) % 2**32


def test_one_damaged_file_does_not_leave_the_other_reads_hanging(copied, caplog):
    truncate(copied / "6")
    with caplog.at_level("ERROR", logger="asyncio"):
        for _ in range(5):  # which reads are under way when the first one fails is a matter of luck
            with pytest.raises(DamagedError), Checkpoints(copied) as checkpoints:
                checkpoints.restore(abstract_state(start, MESH), 6)
            gc.collect()  # a read that was left behind would be an error here
    assert not [record for record in caplog.records if "reading" in str(record.exc_info)]
