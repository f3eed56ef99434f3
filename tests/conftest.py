"""Every test runs on eight CPU devices, with shapes and types of jhsae checked at every call."""

import os

import quick_compile

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_compile.on_devices(8)}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

install_import_hook("jhsae", "beartype.beartype")
