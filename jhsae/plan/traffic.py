"""Bytes between a chip and its main memory.

Every instruction outside fusions reads its operands and writes its results; what stands in the buffers beside the
arithmetic (VMEM) costs nothing. A slice or a gather reads what it gives and not the whole array; an update in place
writes what changes. Loops by their trips (`loops`). A sort counts as one pass. Padding of tiles counts.
"""

from jhsae.plan.hlo import Computation, Instruction, Module, Value

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "opt-barrier", "copy-done", "slice-done", "dynamic-slice-done", "async-done",
    "async-start", "async-update", "send-done", "recv-done", "all-reduce-done", "all-gather-done",
    "collective-permute-done", "domain", "add-dependency",
}  # fmt: skip
STARTS = {"copy-start", "slice-start", "dynamic-slice-start"}
READS_PART = {"dynamic-slice", "gather", "slice"}
UPDATES = {"dynamic-update-slice", "scatter"}
NO_WORK = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding", "SliceBitcast"}


def bytes_moved(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Of one run of an instruction that stands outside fusions."""
    opcode = instruction.opcode
    if opcode in FREE or _no_work(instruction):
        return 0.0
    if opcode in STARTS:
        return _started(instruction)
    if opcode == "fusion":
        return _fusion(module, computation, instruction)
    if opcode in READS_PART:
        source = computation.operand(instruction, 0).values[0]
        return _stored(instruction.values) + source.in_memory * sum(value.stored for value in instruction.values)
    if opcode in UPDATES:
        return 2 * _stored(computation.operand(instruction, _update(instruction)).values)
    reads = sum(_stored(computation.instructions[name].values) for name in dict.fromkeys(instruction.operands))
    return reads + _stored(instruction.values)


def _no_work(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and any(f'"{name}"' in instruction.attributes for name in NO_WORK)


def _update(instruction: Instruction) -> int:
    if instruction.opcode == "dynamic-update-slice":
        return 1
    return len(instruction.operands) - 1  # a scatter lists arrays, indices, updates


def _stored(values: tuple[Value, ...]) -> float:
    return sum((value.stored for value in values if value.in_memory), 0.0)


def _started(instruction: Instruction) -> float:
    """A copy between memories: its smallest array, once for each side in main memory."""
    arrays = [value for value in instruction.values if value.dims]
    return min(value.stored for value in arrays) * sum(value.in_memory for value in arrays) if arrays else 0.0


def _fusion(module: Module, computation: Computation, fusion: Instruction) -> float:
    inner = module.called(fusion)
    if inner is None:
        raise ValueError(f"{fusion.name}: a fusion without its computation")
    total = 0.0
    for index, name in enumerate(fusion.operands):
        values = computation.instructions[name].values
        if any(value.in_memory for value in values):
            total += min(_read(module, inner, inner.parameters[index]), sum(value.stored for value in values))
    roots = [inner.root] if inner.root.opcode != "tuple" else [inner.instructions[n] for n in inner.root.operands]
    results = [root for root in roots for _ in root.values]  # one may give several, such as a sort
    for value, root in zip(fusion.values, results, strict=True):
        total += _written(module, inner, root, value) if value.in_memory else 0.0
    return total


def _read(module: Module, inner: Computation, name: str) -> float:
    """What a fusion reads of one of its inputs."""
    whole = sum((value.stored for value in inner.instructions[name].values), 0.0)
    total = 0.0
    for user in inner.users[name]:
        first = user.operands[0] == name
        if user.opcode in READS_PART and first:
            total += sum(value.stored for value in user.values)
        elif user.opcode in UPDATES and first:
            total += 0.0 if user.opcode == "dynamic-update-slice" else _changed(inner, user)
        elif user.opcode in ("bitcast", "reshape"):
            total += _read(module, inner, user.name)
        elif user.opcode == "fusion" and (nested := module.called(user)):
            total += _read(module, nested, nested.parameters[user.operands.index(name)])
        elif user.opcode == "tuple":
            continue
        else:
            total += whole
    return min(total, whole)


def _written(module: Module, inner: Computation, root: Instruction, value: Value) -> float:
    while root.opcode in ("bitcast", "reshape"):
        root = inner.operand(root, 0)
    if root.opcode == "fusion" and (nested := module.called(root)) and nested.root.opcode != "tuple":
        return _written(module, nested, nested.root, value)
    return _changed(inner, root) if root.opcode in UPDATES else value.stored


def _changed(inner: Computation, update: Instruction) -> float:
    return sum((value.stored for value in inner.operand(update, _update(update)).values), 0.0)
