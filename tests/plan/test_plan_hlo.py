"""The reader of compiled programs: what it counts is held against programs of known work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jhsae.ops.tiles import group_size, group_tiles, over_tiles
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.plan.collectives import groups_of
from jhsae.plan.cost import product_of, work_of
from jhsae.plan.hlo import Instruction, Module, Value
from jhsae.plan.loops import TileLoad, execution

# as XLA:TPU writes it: no trip count, windows for batch dimensions, memory spaces, a constant in the condition
TPU = """HloModule jit_f, is_scheduled=true

%fused (p0: f32[4,16,8], p1: f32[4,32,8]) -> f32[4,16,32] {
  %p0 = f32[4,16,8]{2,1,0:T(8,128)} parameter(0)
  %p1 = f32[4,32,8]{2,1,0:T(8,128)} parameter(1)
  ROOT %dot = f32[4,16,32]{2,1,0:T(8,128)} convolution(%p0, %p1), window={size=4 stride=3 lhs_dilate=4}, \
dim_labels=0bf_0oi->0bf
}

%body (arg: (s32[], f32[4,16,8], f32[4,32,8], f32[4,16,32])) -> (s32[], f32[4,16,8], f32[4,32,8], f32[4,16,32]) {
  %arg = (s32[]{:T(128)}, f32[4,16,8]{2,1,0:T(8,128)S(1)}, f32[4,32,8]{2,1,0:T(8,128)}, \
/*index=3*/f32[4,16,32]{2,1,0:T(8,128)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %copy = s32[]{:T(128)S(6)} copy(%i)
  %next = s32[]{:T(128)} add(%copy, %one)
  %a = f32[4,16,8]{2,1,0:T(8,128)S(1)} get-tuple-element(%arg), index=1
  %b = f32[4,32,8]{2,1,0:T(8,128)} get-tuple-element(%arg), index=2
  %out = f32[4,16,32]{2,1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused
  %sum = f32[4,16,32]{2,1,0:T(8,128)} all-reduce(%out), channel_id=1, \
replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}, use_global_device_ids=true, to_apply=%add
  ROOT %tuple = (s32[]{:T(128)}, f32[4,16,8]{2,1,0:T(8,128)S(1)}, f32[4,32,8]{2,1,0:T(8,128)}, \
f32[4,16,32]{2,1,0:T(8,128)}) tuple(%next, %a, %b, %sum)
}

%condition (arg.1: (s32[], f32[4,16,8], f32[4,32,8], f32[4,16,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %arg.1 = (s32[]{:T(128)}, f32[4,16,8]{2,1,0:T(8,128)S(1)}, f32[4,32,8]{2,1,0:T(8,128)}, \
f32[4,16,32]{2,1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (x: f32[4,16,8], y: f32[4,32,8], z: f32[4,16,32]) -> f32[4,16,32] {
  %x = f32[4,16,8]{2,1,0:T(8,128)} parameter(0)
  %y = f32[4,32,8]{2,1,0:T(8,128)} parameter(1)
  %z = f32[4,16,32]{2,1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(START)
  %start = s32[]{:T(128)} copy(%zero)
  %all = (s32[]{:T(128)}, f32[4,16,8]{2,1,0:T(8,128)}, f32[4,32,8]{2,1,0:T(8,128)}, \
f32[4,16,32]{2,1,0:T(8,128)}) tuple(%start, %x, %y, %z)
  %loop = (s32[]{:T(128)}, f32[4,16,8]{2,1,0:T(8,128)}, f32[4,32,8]{2,1,0:T(8,128)}, \
f32[4,16,32]{2,1,0:T(8,128)}) while(%all), condition=%condition, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %last = f32[4,16,32]{2,1,0:T(8,128)} get-tuple-element(%loop), index=3
}
"""


@pytest.mark.parametrize(("start", "trips"), [(0, 10), (7, 3), (12, 0)])
def test_a_tpu_loop_counts_by_the_constants_of_its_condition(start: int, trips: int):
    work = work_of(TPU.replace("START", str(start)), 8)
    assert [(loop.trips, loop.how) for loop in work.loops] == [(trips, "known")]
    assert work.flops == trips * 2 * 4 * 16 * 32 * 8
    assert sum(c.times for c in work.collectives) == trips


def test_bytes_are_those_in_main_memory_with_the_padding_of_tiles():
    work = work_of(TPU.replace("START", "0"), 8)
    fusion, reduce = (op for op in work.operations if op.name in ("out", "sum"))
    # %a stands beside the arithmetic; rows of 8 and of 32 numbers fill rows of 128
    assert fusion.bytes == 4 * (4 * 32 * 128 + 4 * 16 * 128)
    assert reduce.bytes == 2 * 4 * 4 * 16 * 128
    assert fusion.times == reduce.times == 10


def test_a_product_is_padded_to_the_matrix_unit():
    module = Module.parse(TPU)
    fused = module.computations["fused"]
    product = product_of(fused.root, fused)
    assert product is not None and (product.copies, product.m, product.n, product.k) == (4, 16, 32, 8)
    # 16 rows x 128 columns is less than 32 rows (the other operand) x 128
    assert product.padded(128) == 2 * 4 * 16 * 128 * 128


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4,'b'=1], device_ids=([2,2]T(1,0)) {'a'}", [[0, 2, 1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("channel_id=1, replica_groups={}, to_apply=%add", [[0, 1, 2, 3]]),
    ],
)
def test_groups_in_every_notation(text: str, groups: list[list[int]]):
    instruction = Instruction("x", "all-reduce", (), (), "", ", " + text, False)
    np.testing.assert_array_equal(groups_of(instruction, 4), groups)


@pytest.mark.parametrize(
    ("kind", "payload", "sent"),
    [("ALL_REDUCE", 512, 768), ("REDUCE_SCATTER", 512, 384), ("ALL_GATHER", 2048, 1536)],
)
def test_what_crosses_slices_is_sent_to_the_runtime(kind: str, payload: float, sent: float):
    text = """HloModule jit_f

ENTRY %main (x: f32[128]) -> f32[128] {
  %x = f32[128]{0} parameter(0)
  %token = token[] after-all()
  ROOT %send = (f32[128]{0}, u32[], token[]) send(%x, %token), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,3:5}x{0:3}",_xla_megascale_transfer_type="KIND"}
}
"""
    (found,) = work_of(text.replace("KIND", kind), 16).collectives
    assert (found.size, found.bytes, found.sent, found.between) == (4, payload, sent, True)
    np.testing.assert_array_equal(found.groups[1], [1, 5, 9, 13])


def test_an_unknown_notation_is_an_error():
    instruction = Instruction("x", "all-reduce", (), (), "", ", replica_groups=mesh[@m]", False)
    with pytest.raises(ValueError, match="unknown notation"):
        groups_of(instruction, 4)
    with pytest.raises(ValueError, match="no ENTRY"):
        Module.parse("HloModule x")


@pytest.mark.parametrize(
    ("layout", "size"),
    [("", 4 * 16 * 4), ("{1,0:T(8,128)}", 16 * 128 * 4), ("{0,1:T(4,128)}", 4 * 128 * 4), ("{1,0:T(8,128)S(1)}", 0)],
)
def test_stored_bytes(layout: str, size: int):
    value = Value("f32", (16, 4), layout)
    assert value.bytes == 256
    assert (value.stored if value.in_memory else 0) == size


def test_a_compiled_scan_counts_every_trip():
    def scan(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=10)[0]

    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    compiled = jax.jit(scan).lower(shape, shape).compile()
    work = work_of(compiled.as_text(), 1, cost=compiled.cost_analysis())
    body = 2 * 64**3
    assert (work.flops, work.once) == (10 * body, body)
    # the reason for all this: the compiler counts the body once
    assert body <= work.compiler_flops < 1.2 * body


def test_a_loop_of_unknown_length_counts_once_unless_it_goes_over_tiles():
    def loop(n: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    compiled = jax.jit(loop).lower(
        jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((32, 32), jnp.float32)
    ).compile()  # fmt: skip
    program = execution(Module.parse(compiled.as_text()), TileLoad(1e6, 10))
    assert [(loop.trips, loop.how) for loop in program.loops] == [(1, "once")]


def test_a_loop_that_may_end_before_its_bound_counts_whole():
    def f(x):
        def body(carry):
            i, x = carry
            return i + 1, x @ x

        return jax.lax.while_loop(lambda c: (c[0] < 7) & jnp.any(c[1] > 0), body, (2, x))[1]

    program = execution(Module.parse(jax.jit(f).lower(jnp.ones((8, 8))).compile().as_text()))
    assert [(loop.trips, loop.how) for loop in program.loops] == [(5, "most")]


def test_a_loop_over_tiles_makes_the_trips_that_even_use_of_experts_would():
    indices = jax.ShapeDtypeStruct((512, 4), jnp.int32)

    def loop(indices: jax.Array, x: jax.Array) -> jax.Array:
        tiles = group_tiles(indices, 8, 4096)
        body = lambda out, some, _: out + jnp.sum(x[some.token] * some.live[..., None])  # noqa: E731
        return over_tiles(tiles, group_size(4096), body, jnp.zeros(()))

    compiled = jax.jit(loop).lower(indices, jax.ShapeDtypeStruct((512, 4096), jnp.float32)).compile()
    (found,) = (
        loop for loop in execution(Module.parse(compiled.as_text()), TileLoad(512 * 4, 8)).loops if loop.how != "known"
    )
    # 2,048 pairs are 128 full tiles, 136 at most, 8 at a time
    assert group_size(4096) == 8
    assert (found.trips, found.most, found.how) == (16, 17, "expected")


def test_expected_trips_are_full_tiles_of_every_expert():
    # 4 experts with 20 pairs each: 2 tiles of 16 each, 8 in all, 3 at a time
    assert TileLoad(80, 4).expected(3, 10) == 3
    assert TileLoad(80, 4).expected(3, 2) == 2


def test_collectives_of_a_compiled_program_name_their_group_payload_and_count():
    mesh = make_mesh(MeshShape(4, 2))
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731

    def many(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def inside(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            def body(sum_: jax.Array, _: None) -> tuple[jax.Array, None]:
                return jax.lax.psum(sum_ * 2, "data"), None

            return jax.lax.scan(body, x, length=5)[0], jax.lax.all_gather(y, "expert", axis=0, tiled=True)

        specs = (PartitionSpec(), PartitionSpec("expert"))
        return jax.shard_map(
            inside, mesh=mesh, in_specs=specs, out_specs=(PartitionSpec(), PartitionSpec()), check_vma=False
        )(x, y)

    shapes = (
        jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=place()),
        jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=place("expert")),
    )
    compiled = jax.jit(many).lower(*shapes).compile()
    found = {c.kind: c for c in work_of(compiled.as_text(), 8).collectives}
    reduce, gather = found["all-reduce"], found["all-gather"]
    assert (reduce.size, reduce.times, reduce.bytes) == (4, 5, 16 * 16 * 4)
    assert (gather.size, gather.times, gather.bytes) == (2, 1, 8 * 32 * 4)
    assert (reduce.sent, gather.sent) == (2 * 1024 * 3 / 4, 1024 / 2)
    assert sorted(map(sorted, reduce.groups.tolist())) == [[0, 2, 4, 6], [1, 3, 5, 7]]
