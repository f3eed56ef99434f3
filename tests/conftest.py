"""Every test runs on eight CPU devices, with shapes and types of jhsae checked at every call."""

import gc
import os
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import quick_compile

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_compile.on_devices(8)}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled = TemporaryDirectory(prefix="jhsae-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
else:  # a worker loads what it has compiled, and so do processes of its tests; another might read a file half written
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{os.environ['PYTEST_XDIST_WORKER']}"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jhsae", "beartype.beartype")

gc.set_threshold(100_000, 20, 20)  # traces leave millions of objects; looking through them at each turn takes minutes


FILES = 8  # after how many files a process frees what they have compiled
_files = count(1)


def pytest_collection_finish() -> None:
    """Leaves what was imported out of every later collection: most objects of a test process are modules'."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_files():
    """Frees what some files have compiled: a process that kept the programs of all ended in a segmentation fault."""
    yield
    if next(_files) % FILES == 0:
        jax.clear_caches()
        gc.collect()


MAPS, TESTS = 30_000, 16  # memory maps of a process, and after how many tests they are counted
_tests, _maps = count(1), Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def programs_end_before_a_process_does():
    """Frees what a long file has compiled: Linux aborts a process with 65,530 memory maps, and a program takes some."""
    yield
    if next(_tests) % TESTS == 0 and _maps.exists() and _maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
        gc.collect()


LIST, PRODUCT = 24, 8  # cases of one test that always run: of one axis, and of a product of several


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks cases of long lists and of products as slow; `tests/hostile` states its counts itself.

    Of a list longer than `LIST` one case in six stays. Of a product of more than `PRODUCT` cases those stay that
    bring a value of an axis which no case before has, and one in ten of the others: each value of each axis is tested.
    Of a test marked ``few(n)``, whose cases take long, the first n stay.
    """
    tests: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "hostile" not in item.nodeid:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        if few := cases[0].get_closest_marker("few"):
            for case in cases[few.args[0] :]:
                case.add_marker(pytest.mark.slow)
            continue
        columns = zip(*(case.callspec.indices.values() for case in cases), strict=True)
        axes = len({column for column in columns if len(set(column)) > 1})
        seen: set[tuple[str, int]] = set()
        for case in cases:
            values = set(case.callspec.indices.items())
            new, seen = not values <= seen, seen | values
            chance = crc32(case.nodeid.encode())
            of_list = axes < 2 and len(cases) > LIST and chance % 6
            of_product = axes > 1 and len(cases) > PRODUCT and not new and chance % 10
            if of_list or of_product:
                case.add_marker(pytest.mark.slow)


PART = {"losses", "ops", "sae", "sparsify"}  # the folders of --part


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--part``: for a second version of Python and JAX."""
    parser.addoption("--part", action="store_true", help="operations, sparsifiers, SAEs and losses alone")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    at_top = collection_path.parent == Path(__file__).parent
    return True if config.getoption("--part") and at_top and collection_path.name not in PART else None
