"""Training straight from the language model: a buffer on eight devices, exact to resume."""

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from scipy.spatial import cKDTree
from small_lm import EMBED, LAYER, save_model_and_text

from jhsae import config as cfg
from jhsae import lm
from jhsae.activations.buffer import SEGMENTS
from jhsae.activations.live import LiveActivations
from jhsae.activations.passes import Passes
from jhsae.activations.streams import Streams
from jhsae.data import ModelName, TextFiles
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train
from jhsae.training.run import train

CONTEXT, BATCH = 10, 32


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a language model and 900 short documents."""
    folder = tmp_path_factory.mktemp("live")
    return save_model_and_text(folder, 900, shortest=4)


def live(place: Path, devices: int = 8, layer: int = LAYER, **changes) -> LiveActivations:
    options = {"rows": 8000, "context": CONTEXT, "sequences": 8, "buffer_rows": 2048, "dtype": "float32"} | changes
    mesh = make_mesh(MeshShape(), devices)
    return LiveActivations(str(place / "lm"), layer, TextFiles(str(place / "text.txt")), **options, mesh=mesh)


@pytest.fixture(scope="module")
def source(place) -> LiveActivations:
    return live(place)


@pytest.fixture(scope="module")
def epoch(source) -> np.ndarray:
    """What the first epoch and a little of the second give, batch by batch."""
    batches = source.batches(BATCH, 0)
    return np.stack([np.asarray(next(batches)) for _ in range(_steps(batches) + 8)])


def _steps(batches) -> int:
    return batches._plan.per_epoch * batches._plan.per_window


def _known(place, source) -> np.ndarray:
    """Every row that a harvest of the same text would store."""
    reader = lm.load(place / "lm")
    residual = reader.model.residual(jnp.asarray(source._stream.tokens.astype(np.int32)), LAYER)
    return np.asarray(residual)[source._stream.keep]


def _numbers(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which row of `known` each row is."""
    distance, number = cKDTree(known).query(rows)
    assert distance.max() < 1e-4
    return number


def test_batches_are_rows_of_the_model_and_hardly_any_comes_twice_in_an_epoch(place, source, epoch):
    known = _known(place, source)
    batches = source.batches(BATCH, 0)
    assert batches._plan.per_epoch > SEGMENTS + 2
    assert epoch.shape[1:] == (BATCH, EMBED) and epoch.dtype == np.float32
    found = _numbers(epoch[: _steps(batches) - SEGMENTS * batches._plan.per_window].reshape(-1, EMBED), known)
    _, counts = np.unique(found, return_counts=True)
    assert len(found) > 1000 and (counts > 1).sum() < 0.05 * len(counts)


def test_batches_are_mixed(place, source, epoch):
    """A batch draws on the sequences of four refills, and its neighbours are not those of the text."""
    known = _known(place, source)
    sequence = np.nonzero(source._stream.keep)[0]
    for batch in epoch[:4]:
        assert len(set(sequence[_numbers(batch, known)].tolist())) > 24


def test_resuming_is_exact_within_and_across_windows_and_epochs(source, epoch):
    for step in (0, 1, 13, len(epoch) - 8):
        fresh = source.batches(BATCH, 0)
        next(fresh)
        fresh.set_state(json.loads(json.dumps({"next_index": step, "lanes": 8})))
        np.testing.assert_array_equal(np.stack([np.asarray(b) for b in islice(fresh, 6)]), epoch[step : step + 6])
    assert fresh.get_state() == {"next_index": step + 6, "lanes": 8}


def test_other_meshes_give_the_same_batches_and_another_seed_others(place, source, epoch):
    """Eight lanes on two devices, given as an option or taken over from the checkpoint of eight devices."""
    given = live(place, 2, lanes=8).batches(BATCH, 0)
    resumed = live(place, 4).batches(BATCH, 0)
    resumed.set_state({"next_index": 5, "lanes": 8})
    np.testing.assert_allclose([next(given) for _ in range(3)], epoch[:3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(next(resumed), epoch[5], rtol=1e-5, atol=1e-5)
    assert not np.allclose(next(source.batches(BATCH, 1)), epoch[0])


def test_rows_stay_on_their_devices(source):
    """The buffer is written and drawn from without one collective."""
    batches = source.batches(BATCH, 0)
    x = next(batches)
    assert x.sharding.is_equivalent_to(batches._put(np.asarray(x), jax.P(("host", "data"))).sharding, 2)
    slots = batches._put(batches._plan.slots(0)[0], jax.P())
    drawn = batches._draw.lower(batches._buffer, slots).compile().as_text()
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all", "collective") if word in drawn]


def test_the_sample_is_the_start_of_the_text_on_any_mesh(place, source):
    other = live(place, 2)
    assert source.rows == source.manifest.rows == other.rows
    np.testing.assert_allclose(source.read(3, 40), other.read(3, 40), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(source.manifest.mean, source.read(0, source.rows).mean(axis=0), atol=1e-5)
    assert source.identity() == other.identity() != live(place, 2, rows=500).identity()


TURNS = [(0, BATCH, 40), (1, 2 * BATCH, 20), (2, BATCH, 24)]  # layer, rows of a batch, batches


@pytest.fixture
def read(monkeypatch) -> Counter:
    """How many sequences the programs for each set of layers have read."""
    counts, call = Counter(), Streams.__call__

    def counted(streams, tokens):
        counts[tuple(hook.block for hook in streams.hooks)] += len(tokens)
        return call(streams, tokens)

    monkeypatch.setattr(Streams, "__call__", counted)
    return counts


def _in_turns(place) -> list[list[np.ndarray]]:
    """The batches of `TURNS`, each time of the one that has read the fewest rows, from sources that share passes."""
    deepest = live(place, 1, layer=2)
    batches = [(deepest if n == 2 else deepest.at(n)).batches(size, 0) for n, size, _ in TURNS]
    found: list[list[np.ndarray]] = [[] for _ in TURNS]
    left = list(range(len(TURNS)))
    while left:
        for i in left:
            batches[i].together([batches[j] for j in left])
        i = min(left, key=lambda i: len(found[i]) * TURNS[i][1])
        found[i].append(np.asarray(next(batches[i])))
        left = [j for j in left if len(found[j]) < TURNS[j][2]]
    return found


def test_layers_are_read_in_one_pass_with_the_bits_of_each_alone(place, read):
    """Three layers, two sizes of a batch, one that ends before the others: no sequence is read twice."""
    found = _in_turns(place)
    plan = live(place, 1).batches(BATCH, 0)._plan
    compared = plan.sequences  # in each program, and in that of each layer alone
    assert read[0, 1, 2] == 5 * plan._taken + compared and read[0, 1] == plan._taken + compared
    assert {n: read.pop((n,)) for n in range(3)} == {0: 2 * compared, 1: 2 * compared, 2: compared} and len(read) == 2
    for (layer, size, steps), together in zip(TURNS, found, strict=True):
        alone = live(place, 1, layer=layer).batches(size, 0)
        np.testing.assert_array_equal(np.stack(together), np.stack([np.asarray(b) for b in islice(alone, steps)]))


def test_a_layer_that_one_pass_would_round_differently_has_its_own(place, read, monkeypatch, caplog):
    make = Streams.__init__

    def rounding(streams, model, hooks, *rest):
        make(streams, model, hooks, *rest)
        layers = tuple(hook.block for hook in hooks)
        forward = streams._forward
        streams._forward = lambda m, ids: (
            forward(m, ids)
            + (1e-3 if len(layers) > 1 and 1 in layers else 0) * (jnp.asarray(layers) == 1).reshape(-1, 1, 1, 1)
        )

    monkeypatch.setattr(Streams, "__init__", rounding)
    deepest = live(place, 1, layer=2)
    passes = Passes(*deepest._passes._arguments)
    tokens = deepest._stream.tokens[: deepest._streams.local_batch]
    with caplog.at_level("INFO", "jhsae"):
        found = passes(tokens, (0, 1, 2))
    assert {n: (len(array), tap) for n, (array, tap) in found.items()} == {0: (2, 0), 1: (1, 0), 2: (2, 1)}
    assert "one for layer 1 and one for layers 0, 2, which one pass would round differently" in caplog.text


def test_a_buffer_that_is_ahead_or_behind_has_the_same_batches(place, read):
    """Turns that are not taken evenly cost passes, not rows."""
    deepest = live(place, 1, layer=2)
    pair = [deepest.batches(BATCH, 0), deepest.at(1).batches(BATCH, 0)]
    for one in pair:
        one.together(pair)
    ahead = [np.asarray(b) for b in islice(pair[0], 70)]
    behind = [np.asarray(b) for b in islice(pair[1], 70)]
    pair[1].set_state({"next_index": 37, "lanes": 1})
    again = [np.asarray(b) for b in islice(pair[0], 3)], [np.asarray(b) for b in islice(pair[1], 3)]
    alone = [[np.asarray(b) for b in islice(live(place, 1, layer=n).batches(BATCH, 0), 73)] for n in (2, 1)]
    np.testing.assert_array_equal(ahead + again[0], alone[0])
    np.testing.assert_array_equal(behind + again[1], alone[1][:70] + alone[1][37:40])


def test_what_does_not_fit_is_a_sentence(place, source):
    with pytest.raises(UserError, match="one refill of the buffer takes"):
        source.batches(2**14, 0)
    with pytest.raises(UserError, match=r"12 lanes, which 8 devices cannot share.*data\.live\.lanes=16"):
        live(place, lanes=12).batches(24, 0)
    with pytest.raises(UserError, match="batch is 20, which 8 lanes cannot share"):
        source.batches(20, 0)


def _config(place: Path, out: str, *overrides: str, **data) -> Train:
    slot = {
        "_target_": "jhsae.activations.live.LiveActivations",
        "path": str(place / "lm"),
        "layer": LAYER,
        "text": {"_target_": "jhsae.data.TextFiles", "paths": str(place / "text.txt")},
        "rows": 8000,
        "context": CONTEXT,
        "sequences": 8,
        "buffer_rows": 512,
    }
    data = {"live": slot, "batch": 64, "normalize": {"_target_": "jhsae.data.CenterScale"}} | data
    changes = {
        "data": data,
        "sae": {
            "_target_": "jhsae.sae.FlatSAE",
            "embed": EMBED,
            "features": 24,
            "sparsifier": {"_target_": "jhsae.sparsify.TopK", "k": 3},
        },
        "objective": {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}},
        "weights": {},
        "stages": [{"name": "all", "steps": 20, "learning_rate": 1e-2}],
    }
    return cfg.load(Train, runs.train_config(place, place / "none", place / out, **changes), overrides)


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(place):
    whole, cut = place / "whole", place / "cut"
    train(_config(place, "whole"))
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["explained_variance"] > rows[0]["explained_variance"] + 0.1
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "sae")
    shutil.rmtree(cut / "checkpoints" / "20")
    train(_config(place, "cut"))
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    same = [(folder / "sae" / "sae.safetensors").read_bytes() for folder in (cut, whole)]
    assert same[0] == same[1]
    name = ModelName.of(str(place / "lm"), lm.load(place / "lm").sha256)
    assert load_sae(whole)[2]["reads"] == {"model": name.name, "layer": LAYER, "model_sha256": name.sha256}


def test_a_config_names_a_store_or_a_model_and_not_both(place):
    with pytest.raises(UserError, match="data names both of store and live"):
        _config(place, "x", "data.store=somewhere")
    with pytest.raises(UserError, match="data names neither of store and live"):
        _config(place, "x", "data.live=null")
