"""The rooms of the package: a file imports only from lower floors or from its own room.

A room is a folder of jhsae/, or a file beside the folders. What stands on one floor is independent of each other.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "codes"},
    {"leaf", "usage", "ranges", "ops", "files"},
    {"schedule", "metric", "config", "parallel"},
    {"sparsify", "data"},
    {"sae", "lm", "teacher", "worlds"},
    {"losses", "constraint", "features", "activations"},
    {"init", "resampling", "optimizer", "evals"},
    {"training", "report", "browser"},
    {"interop", "bench", "plan"},
    {"parity"},
    {"commands", "__init__"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ASSETS = ROOT / "jhsae" / "assets"  # what is shipped there is written out; only the SAELens plug-in imports it
FILES = sorted(file for file in (ROOT / "jhsae").rglob("*.py") if ASSETS not in file.parents)


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}  # assets are no part of it


def room_of(module: str) -> str:
    """The top-level file or folder: jhsae.sae.flat belongs to sae, jhsae itself is __init__."""
    return [*module.split("."), "__init__"][1]


@cache
def imports(file: Path) -> frozenset[str]:
    """Every module that a file imports, inside functions too; of jhsae's names, only those that are modules."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module_of(file).split(".") if file.name == "__init__.py" else module_of(file).split(".")[:-1]
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            members = {f"{base}.{alias.name}" for alias in node.names}
            found |= {member for member in members if member in MODULES}
            if not members <= MODULES.keys():
                found.add(base)
    return frozenset(name for name in found if not name.startswith("jhsae.assets"))


def inside(file: Path) -> set[str]:
    return {module for module in imports(file) if module.split(".")[0] == "jhsae"}


def reached(start: str) -> set[str]:
    """What importing `start` imports, folders' __init__ files included, jhsae's own left out."""
    seen: set[str] = set()
    todo = {start}
    while todo:
        module = todo.pop()
        seen.add(module)
        words = module.split(".")
        packages = {".".join(words[:depth]) for depth in range(2, len(words))}
        todo |= ((inside(MODULES[module]) | packages) & MODULES.keys()) - seen - {"jhsae"}
    return seen


def allowed(importer: str, imported: str) -> bool:
    here, there = room_of(importer), room_of(imported)
    return here == there or FLOOR[there] < FLOOR[here] or imported == "jhsae"  # whose names are imported lazily


def test_the_rooms():
    """No room without a floor, nothing climbs (so there is no circle), and only files connect the stages."""
    assert {room_of(module) for module in MODULES} == FLOOR.keys(), "keep the table FLOORS and the README's in step"
    climbing = [
        f"{importer} (floor {FLOOR[room_of(importer)]}) imports {imported} (floor {FLOOR[room_of(imported)]})"
        for importer, file in MODULES.items()
        for imported in sorted(inside(file))
        if not allowed(importer, imported)
    ]
    assert not climbing, "\n".join(climbing)
    for verb, forbidden in [("train", "lm"), ("harvest", "sae")]:
        assert forbidden not in {room_of(module) for module in reached(f"jhsae.commands.{verb}")}, (verb, forbidden)


def test_the_size_of_the_package():
    """At most 40 rooms and 200 imports between them, 13 files at the root, and no file over 400 lines."""
    arrows = {(room_of(m), room_of(i)) for m, file in MODULES.items() for i in inside(file) if room_of(m) != room_of(i)}
    assert len(FLOOR) <= 40 and len(arrows) <= 200, (len(FLOOR), len(arrows))
    assert len(list((ROOT / "jhsae").glob("*.py"))) <= 13
    assert not [str(file) for file in FILES if len(file.read_text().splitlines()) > 400]


def test_run_time_needs_no_torch():
    """Only what is asked to open a pickle, and what SAELens loads, imports it; of the tests those that compare."""
    fine = {ROOT / "jhsae" / "interop" / name for name in ("unpickle.py", "saelens/plugin.py")}
    users = {file for file in FILES if any(m.split(".")[0] in {"torch", "sae_lens"} for m in imports(file))}
    assert users <= fine
    importers = {file for file in FILES if inside(file) & {"jhsae.interop.saelens.plugin"}}
    assert not importers, "the plug-in is for SAELens to import"


def test_the_rule_itself():
    assert allowed("jhsae.sae.flat", "jhsae.ops.topk") and allowed("jhsae.sae.flat", "jhsae.sae.base")
    assert allowed("jhsae.commands.train", "jhsae.training.loop")
    assert not allowed("jhsae.ops.topk", "jhsae.sae.flat") and not allowed("jhsae.codes", "jhsae.metric")
