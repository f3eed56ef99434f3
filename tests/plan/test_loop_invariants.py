"""No loop of the compiled step makes a whole-batch array anew in every trip."""

import importlib.util

import pytest

from jhsae import config as cfg
from jhsae.ops import tiles
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.plan.estimate import compile_program
from jhsae.plan.hlo import Computation, Instruction, Module
from jhsae.plan.lowering import lower_train, stage_of
from jhsae.plan.topology import topology
from jhsae.training.config import Train

BATCH, K, ATOMS, EMBED = 256, 4, 16, 32
WHOLE = BATCH * K * ATOMS  # numbers of the pairs of a batch, far more than a group of tiles has
NOT_MADE = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "opt-barrier"}
IN_PLACE = {"dynamic-update-slice", "scatter"}

SUNK = """HloModule f

%select (p: f32[1024,16]) -> f32[1024,16] {
  %p = f32[1024,16]{1,0} parameter(0)
  ROOT %n = f32[1024,16]{1,0} negate(%p)
}

%store (q: f32[1024,16], r: f32[8,16]) -> f32[1024,16] {
  %q = f32[1024,16]{1,0} parameter(0)
  %r = f32[8,16]{1,0} parameter(1)
  %z = s32[] constant(0)
  ROOT %u = f32[1024,16]{1,0} dynamic-update-slice(%q, %r, %z, %z)
}

%body (a: (f32[1024,16], f32[8,16])) -> (f32[1024,16], f32[8,16]) {
  %a = (f32[1024,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  %b = f32[1024,16]{1,0} get-tuple-element(%a), index=0
  %c = f32[8,16]{1,0} get-tuple-element(%a), index=1
  %anew = f32[1024,16]{1,0} fusion(%b), kind=kLoop, calls=%select
  %stored = f32[1024,16]{1,0} fusion(%anew, %c), kind=kLoop, calls=%store
  ROOT %t = (f32[1024,16]{1,0}, f32[8,16]{1,0}) tuple(%stored, %c)
}

%condition (d: (f32[1024,16], f32[8,16])) -> pred[] {
  %d = (f32[1024,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[1024,16], y: f32[8,16]) -> (f32[1024,16], f32[8,16]) {
  %x = f32[1024,16]{1,0} parameter(0)
  %y = f32[8,16]{1,0} parameter(1)
  %before = f32[1024,16]{1,0} fusion(%x), kind=kLoop, calls=%select
  %s = (f32[1024,16]{1,0}, f32[8,16]{1,0}) tuple(%before, %y)
  ROOT %w = (f32[1024,16]{1,0}, f32[8,16]{1,0}) while(%s), condition=%condition, body=%body
}
"""


def made_in_loops(text: str, numbers: int) -> list[str]:
    """Instructions inside of loops that write an array of at least so many numbers, and not into one that is there."""
    module = Module.parse(text)
    whiles = [i for c in module.computations.values() for i in c.instructions.values() if i.opcode == "while"]
    return [
        f"{one.opcode} {one.name} {value.dims} {one.label}"
        for loop in whiles
        if (body := module.called(loop, "body")) is not None
        for one in body.instructions.values()
        if one.opcode not in NOT_MADE
        for value, opcode in zip(one.values, _roots(module, body, one), strict=True)
        if value.size >= numbers and opcode not in IN_PLACE
    ]


def _roots(module: Module, body: Computation, one: Instruction) -> list[str]:
    """The opcode that writes each result, inside of a fusion or a call too."""
    inner = module.called(one, "calls" if one.opcode == "fusion" else "to_apply")
    if inner is None or one.opcode not in ("fusion", "call"):
        return [one.opcode] * len(one.values)
    roots = [inner.root] if inner.root.opcode != "tuple" else [inner.instructions[n] for n in inner.root.operands]
    return [opcode for root in roots for opcode in _roots(module, inner, inner.origin(root.name))]


def test_what_is_made_in_a_loop_is_found():
    assert [line.split()[1] for line in made_in_loops(SUNK, WHOLE)] == ["anew"]


@pytest.mark.parametrize("where", ["cpu:1", "v5p:2x2x1"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_step_makes_no_whole_batch_array_in_a_loop(where, precision, monkeypatch):
    if where[0] == "v" and importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler (libtpu) is not installed")
    monkeypatch.setattr(tiles, "CPU_BYTES", 2 * 4 * tiles.ROWS * EMBED)
    monkeypatch.setattr(tiles, "ACCELERATOR_BYTES", 2 * 4 * tiles.ROWS * EMBED)
    sizes = [f"sae.embed={EMBED}", "sae.experts=64", f"sae.route.k={K}", f"sae.atoms={ATOMS}", f"data.batch={BATCH}"]
    config = cfg.load(Train, cfg.find("scale.yaml"), [*sizes, f"precision={precision}"])
    target = topology(where)
    lowered = lower_train(config, stage_of(config, None), make_mesh(MeshShape(), target.devices[:1]), target.platform)
    program = compile_program(lowered.program).program
    assert made_in_loops(program.as_text(), WHOLE) == []
