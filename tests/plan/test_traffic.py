"""Traffic by operation: named by what was traced, with the lines of Python that asked for it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jhsae.__main__ import main
from jhsae.plan.by_operation import traffic_of
from jhsae.plan.cost import work_of

TEXT = """HloModule f

FileNames
1 "/somewhere/helper.py"
2 "/somewhere/caller.py"

FunctionNames
1 "help"
2 "call"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=4 end_column=9}
2 {file_name_id=2 function_name_id=2 line=30 end_line=30 column=4 end_column=9}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  %a = f32[1024]{0} negate(%x), metadata={op_name="jit(f)/jit(g)/scope/neg" stack_frame_id=2}
  %b = f32[1024]{0} negate(%a), metadata={op_name="jit(f)/jit(g)/scope/neg" stack_frame_id=2}
  ROOT %copy.7 = f32[1024]{0} copy(%b)
}
"""


def test_operations_add_up_and_name_the_lines_that_asked():
    found = traffic_of(work_of(TEXT, 1), TEXT)
    assert [tuple(row) for row in found] == [
        ("scope/neg", "helper.py:3 < caller.py:30", 4.0 * 4096, 2),
        ("(copy)", "", 2.0 * 4096, 1),
    ]


CALL = """HloModule f

ENTRY %main (x: f32[1024,128], y: f32[8]) -> f32[16,128] {
  %x = f32[1024,128]{1,0:T(8,128)} parameter(0)
  %y = f32[8]{0} parameter(1)
  ROOT %k = f32[16,128]{1,0:T(8,128)} custom-call(%x, %y), custom_call_target="tpu_custom_call", backend_config={CONFIG}
}
"""


def test_a_kernel_moves_what_its_estimate_says_and_without_one_its_whole_arrays():
    estimate = '"cost_estimate":{"flops":"7","transcendentals":"0","bytes_accessed":"4096"}'
    body = '"custom_call_config":{"body":"TUzvUg=="'
    estimated = work_of(CALL.replace("CONFIG", body + "," + estimate + "}"), 1)
    plain = work_of(CALL.replace("CONFIG", body + "}"), 1)
    assert (estimated.kernels, estimated.bytes) == (1, 4096)
    assert (plain.kernels, plain.bytes) == (1, 4 * (1024 * 128 + 8 + 16 * 128))


def test_the_whole_is_that_of_the_program_and_lines_are_those_of_this_file():
    def scanned(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, a: (c + a @ a.T, None), jnp.zeros((4, 4)), x)[0]

    text = jax.jit(scanned).lower(jnp.ones((3, 4, 4))).compile().as_text()
    work = work_of(text, 1)
    found = traffic_of(work, text)
    assert sum(row.bytes for row in found) == work.bytes
    assert {row.source.split(":")[0] for row in found if "while" in row.operation} == {"test_traffic.py"}
    assert all(row.runs % 3 == 0 for row in found if "body" in row.operation)


def test_plan_lists_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["plan", "topk.yaml", "--topology", "cpu:1", "sae.features=16", "sae.embed=8", "data.batch=16"]
    file = tmp_path / "plan.json"
    assert main([*words, "sae.sparsifier.k=2", "--traffic", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert sum(row["bytes"] for row in found["traffic"]) == pytest.approx(found["hbm_traffic"])
    text = capsys.readouterr().out
    assert "HBM traffic of a chip in a step, by operation" in text and f"{found['traffic'][0]['runs']:,}" in text
    assert found["traffic"][0]["operation"] in text and " others" in text
