"""Every test runs on eight CPU devices, with shapes and types of jhsae checked at every call."""

import gc
import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import quick_compile

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_compile.on_devices(8)}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # what one worker, or a process that a test starts, has compiled is loaded by the others
    compiled = TemporaryDirectory(prefix="jhsae-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jhsae", "beartype.beartype")

gc.set_threshold(100_000, 20, 20)  # traces leave millions of objects; looking through them at each turn takes minutes


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_file():
    """Frees what a file has compiled: a process that kept the programs of all files ended in a segmentation fault."""
    yield
    jax.clear_caches()
    gc.collect()


PRODUCT, SHARE = 8, 4  # of a test with more cases than PRODUCT, one in SHARE runs without -m slow


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks most cases of long products as slow; their names decide which, so that each value of each axis stays.

    `tests/hostile` states its counts itself.
    """
    counts = Counter(item.nodeid.partition("[")[0] for item in items)
    for item in items:
        name = item.nodeid.partition("[")[0]
        if counts[name] > PRODUCT and "hostile" not in name and crc32(item.nodeid.encode()) % SHARE:
            item.add_marker(pytest.mark.slow)


PART = {"losses", "ops", "sae", "sparsify"}  # the folders of --part


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--part``: for a second version of Python and JAX."""
    parser.addoption("--part", action="store_true", help="operations, sparsifiers, SAEs and losses alone")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    at_top = collection_path.parent == Path(__file__).parent
    return True if config.getoption("--part") and at_top and collection_path.name not in PART else None
