"""Every test runs on eight CPU devices, with shapes and types of jhsae checked at every call."""

import gc
import os

import quick_compile

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_compile.on_devices(8)}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jhsae", "beartype.beartype")

gc.set_threshold(100_000, 20, 20)  # traces leave millions of objects; looking through them at each turn takes minutes


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_file():
    """Frees what a file has compiled: XLA ended a process that kept the programs of all files with a segmentation fault."""
    yield
    jax.clear_caches()
    gc.collect()
