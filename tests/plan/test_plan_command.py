"""``jhsae plan`` on simulated devices: the real step, without a TPU's compiler."""

import importlib.util
import json
from pathlib import Path

import pytest

from jhsae import config as cfg
from jhsae.__main__ import main
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.plan import compare
from jhsae.plan.format import amount, format_plan, gib, seconds
from jhsae.plan.lowering import lower_train, stage_of, tile_load
from jhsae.plan.topology import topology
from jhsae.training.config import Train

SMALL = ["sae.experts=64", "sae.embed=32", "sae.route.k=4", "data.batch=256"]


def test_the_plan_of_a_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "plan.json"
    words = ["plan", "scale.yaml", "--topology", "cpu:8", "--mesh", "data=4,expert=2", *SMALL[:3]]
    words += ["--tokens-per-chip", "64", "--harvest", "harvest/embedded.yaml", "harvest.batch=8", "--json", str(file)]
    assert main(words) == 0
    found = json.loads(file.read_text())
    assert found["fits"] is True and found["chips"] == 8 and found["mesh"] == {"data": 4, "expert": 2}
    assert found["tokens_per_step"] == 512
    assert found["step_seconds"] is None and found["tokens_per_second"] is None  # nobody knows a CPU's rates
    memory = found["memory"]
    assert sum(memory.values()) == pytest.approx(found["bytes_per_chip"])
    # router, projectors, atoms: encoder and decoder, a half of the experts each
    each = 2 * 32 * (32 + 4 * 32 + 16 * 4)
    assert memory["parameters"] == each * 4
    assert memory["optimizer"] - 4 == 2 * each * 4 / 4  # Adam's moments over the batch's devices too, and a counter
    assert {row["axes"] for row in found["collectives"]} >= {"data", "expert"}
    for row in found["collectives"]:
        assert row.keys() == {"kind", "axes", "group", "network", "count", "bytes", "sent_bytes", "seconds"}
        assert row["bytes"] > 0 and row["count"] > 0
    router = 2 * (512 // 4) * 32 * (64 // 2)
    assert router < found["compiler"]["our_flops_loops_once"] < found["compiler"]["flops"]
    assert router < found["flops"]
    assert found["tokens"] == 60800 * 32512 and found["steps"] == 60800 * 32512 // 512
    harvest = found["harvest"]
    assert harvest["fits"] is True and harvest["flops"] > 0 and harvest["parameters"] > 0
    text = capsys.readouterr().out
    assert "FITS" in text and "data 4 x expert 2" in text and "harvest/embedded.yaml" in text


def test_several_meshes_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "plan.json"
    words = ["plan", "topk.yaml", "--topology", "cpu:4", "sae.features=16", "sae.embed=8", "data.batch=16"]
    assert main([*words, "sae.sparsifier.k=2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert [row["mesh"] for row in found["meshes"]] == [{"data": 4, "expert": 1}, {"data": 1, "expert": 4}]
    assert found["bytes_per_chip"] == min(row["bytes_per_chip"] for row in found["meshes"])
    assert "<- recommended" in capsys.readouterr().out


def test_no_teacher_is_read():
    config = cfg.load(
        Train,
        cfg.find("geometry.yaml"),
        ["sae.experts=16", "sae.embed=16", "sae.sub=4", "sae.atoms=4", "sae.route.k=2", "data.batch=16"],
    )
    mesh = make_mesh(MeshShape(), topology("cpu:2").devices)
    assert lower_train(config, stage_of(config, "adapt"), mesh, "cpu").parameter_count > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--topology", "v9x:2x2"], "the chip 'v9x'; known: v4, v5e, v5p, v6e and cpu"),
        (["--topology", "h100:8"], "A GPU's compiler needs a GPU"),
        (["--topology", "big"], "expected a chip and its numbers of chips; known: v5p:4x4x4"),
        (["--topology", "cpu:512"], "this process has 8 CPU devices"),
        (["--topology", "cpu:2x2"], "simulated devices are written cpu:8"),
        (["--topology", "cpu:8", "--mesh", "data=3,expert=2"], "is 6 chips, but the topology has 8"),
        (["--topology", "cpu:8", "--mesh", "rows=3"], "expected sizes such as data=16,expert=4"),
        (["--topology", "cpu:8", "data.batch=101"], "data.batch is 101, which no mesh of 8 chips can share"),
        (["--topology", "cpu:8", "--stage", "adapt"], "--stage is adapt, expected one of train"),
        (["--topology", "cpu:8", "--tokens-per-chip", "0"], "expected at least 1"),
        ([], "plan was given no --topology, expected one: jhsae plan scale.yaml --topology v5p:4x4x4"),
    ],
)
def test_wrong_words_are_a_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "scale.yaml", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_config_and_a_model_that_nobody_has(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--topology", "cpu:8"]) == 2
    assert "no config file" in capsys.readouterr().err
    words = ["--mesh", "8x1", "--harvest", "harvest/embedded.yaml", "harvest.lm.path=no/such-model"]
    assert main(["plan", "scale.yaml", "--topology", "cpu:8", *SMALL, *words]) == 2
    assert "write harvest.lm.path=FOLDER with the model's config.json" in capsys.readouterr().err


def test_no_libtpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"libtpu\) is not installed; write pip install 'jhsae\[tpu\]'"):
        topology("v5p:4x4x4")


@pytest.mark.parametrize("text", ["data=16,expert=4", "16x4", "data=16", "expert=4"])
def test_a_mesh_in_words(text: str):
    assert compare.mesh_shape(text, 64) == MeshShape(16, 4)


def test_candidates_share_batch_and_experts_evenly():
    shapes = compare.candidates(64, 64, 64)
    assert [(m.data, m.expert) for m in shapes] == [(64, 1), (16, 4), (4, 16)]
    assert [(m.data, m.expert) for m in compare.candidates(8, 2, 6 * 4)] == [(2, 4)]


def test_the_recommended_mesh_fits_then_is_fast_then_small():
    rows = [
        {"fits": False, "step_seconds": None, "bytes_per_chip": 9},
        {"fits": True, "step_seconds": 2.0, "bytes_per_chip": 5},
        {"fits": True, "step_seconds": 1.0, "bytes_per_chip": 7},
        {"fits": True, "step_seconds": 1.0, "bytes_per_chip": 6},
    ]
    assert compare.recommended(rows) == 3
    assert compare.recommended(rows[:1]) == 0


def test_pairs_of_a_chip():
    config = cfg.load(Train, cfg.find("scale.yaml"), SMALL)
    mesh = make_mesh(MeshShape(2, 4), topology("cpu:8").devices)
    # 256 tokens over 2, of 4 experts each; a quarter of those pairs and of the 64 experts is here
    assert tile_load(config, mesh) == (256 / 2 * 4 / 4, 16)


def test_the_longest_stage_is_planned():
    config = cfg.load(Train, cfg.find("geometry.yaml"), [])
    assert stage_of(config, None).name == "adapt"
    assert stage_of(config, "freeze").name == "freeze"


def test_a_page_of_a_program_that_does_not_fit():
    unknown = ("flops", "collectives", "loops", "times", "step_seconds", "tokens_per_second", "days")
    row = {
        "mesh": {"data": 8, "expert": 1},
        "chips": 8,
        "fits": False,
        "bytes_per_chip": 32.0 * 2**30,
        "hbm_bytes": 16.0 * 2**30,
        "memory": {"parameters": 2.0**30, "optimizer": 2.0**31, "batch_and_outputs": None, "temporaries": None},
        "parameters": 10**9,
        "tokens_per_step": 80,
        **dict.fromkeys(unknown),
    }
    about = {"config": "a.yaml", "topology": "v5e:2x4", "stage": "train", "precision": "float32", "meshes": [row, row]}
    text = format_plan(row | about)
    assert "DOES NOT FIT: 32.00 GiB a chip, 2.0 times its 16.00 GiB" in text
    assert "NO" in text.splitlines()[-1]


def test_numbers_in_words():
    assert (amount(1.5e12), amount(12), gib(2**31), seconds(0.0125)) == ("1.5 T", "12 ", "2.00 GiB", "12.5 ms")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed")
def test_a_topology_of_libtpu():
    slice_ = topology("v5e:2x4")
    assert len(slice_.devices) == 8
    assert slice_.places(slice_.devices).shape[:2] == (2, 4)
    with pytest.raises(UserError, match="unknown to libtpu"):
        topology("v5e:3x5")
