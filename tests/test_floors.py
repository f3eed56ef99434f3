"""The floors of the house: a file imports only from lower floors or from its own folder.

A file beside the folders (jhsae/train.py) belongs to the folder jhsae/, so it may also use what stands on its own
floor; a folder may not use another folder of its floor.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "codes", "usage", "schedule", "leaf", "folders", "bounded", "ranges", "checksums", "lock", "inputs"}
    | {"outcome", "lease", "archives", "tensor_files", "forms", "token_text", "escaping"},
    {"ops", "metric", "wordnet"},
    {"sparsify"},
    {"sae", "data", "teacher", "lm"},
    {"init", "constraint", "losses"},
    {"optimizer", "devices", "mesh", "revival", "step", "loop", "logs", "checkpoint", "config", "run_config", "fitting"}
    | {"distributed", "peers", "preemption", "sharded", "fingerprint", "finishing_loop", "run_folder", "saved_sae"}
    | {"phases", "run_checks", "room"},
    {"evals", "harvest", "fill", "live", "live_buffer", "streams", "teach", "train", "evaluate"},
    {"interop", "ablate", "report", "bench", "quickstart", "browser", "browse", "export", "import_", "plan"},
    {"__main__", "__init__"},
]
FLOOR = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
ASSETS = ROOT / "jhsae" / "assets"  # what is shipped there is written out; only the SAELens plug-in imports it
FILES = sorted(file for file in (ROOT / "jhsae").rglob("*.py") if ASSETS not in file.parents)
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def unit_of(module: str) -> str:
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
    return frozenset(found)


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
    here, there = unit_of(importer), unit_of(imported)
    if here == there or FLOOR[there] < FLOOR[here]:
        return True
    return FLOOR[there] == FLOOR[here] and (ROOT / "jhsae" / f"{here}.py").exists()


def test_every_file_and_folder_has_a_floor():
    unknown = {unit_of(module) for module in MODULES} - FLOOR.keys()
    assert not unknown, f"add {sorted(unknown)} to the table FLOORS of this file, and to the one in the README"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_imports_only_from_lower_floors_or_its_own_folder(file: Path):
    importer = module_of(file)
    if unit_of(importer) in FLOOR:
        known = {module for module in inside(file) if unit_of(module) in FLOOR}
        wrong = [module for module in known if not allowed(importer, module)]
        assert not wrong, f"{importer} (floor {FLOOR[unit_of(importer)]}) imports {wrong}, not from a lower floor"


@pytest.mark.parametrize(("verb", "forbidden"), [("train", "lm"), ("harvest", "sae")])
def test_only_files_on_disk_connect_the_stages(verb: str, forbidden: str):
    if f"jhsae.{verb}" not in MODULES:
        pytest.skip(f"{verb}.py is not written yet")
    assert not [module for module in reached(f"jhsae.{verb}") if unit_of(module) == forbidden]


def test_run_time_needs_no_torch():
    """Only what is asked to open a pickle, and what SAELens loads, imports it; of the tests those that compare."""
    fine = {ROOT / "jhsae" / "interop" / name for name in ("unpickle.py", "saelens_plugin.py")}
    users = {file for file in FILES if any(m.split(".")[0] in {"torch", "sae_lens"} for m in imports(file))}
    assert users <= fine
    importers = {file for file in FILES if inside(file) & {"jhsae.interop.saelens.plugin"}}
    assert not importers, "the plug-in is for SAELens to import"


@pytest.mark.parametrize(
    ("importer", "imported", "fine"),
    [
        ("jhsae.sae.flat", "jhsae.ops.topk", True),
        ("jhsae.sae.flat", "jhsae.sae.base", True),
        ("jhsae.sae.flat", "jhsae.data.store", False),
        ("jhsae.ops.topk", "jhsae.sae.flat", False),
        ("jhsae.commands.train", "jhsae.config", True),
        ("jhsae.codes", "jhsae.metric", False),
        ("jhsae.sae.flat", "jhsae", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, fine: bool):
    assert allowed(importer, imported) is fine
