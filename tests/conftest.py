"""Every test runs on eight CPU devices, with shapes and types of jhsae checked at every call."""

import gc
import os

import quick_compile

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_compile.on_devices(8)}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

install_import_hook("jhsae", "beartype.beartype")

# traces leave millions of objects that live as long as the process; to look through them again and again takes minutes
gc.set_threshold(200_000, 50, 1_000)
