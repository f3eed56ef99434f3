"""Every test runs on eight CPU devices, with shapes and types of jhsae checked at every call."""

import os

# programs of tests run once or twice: most of their time would go into optimising machine code
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

install_import_hook("jhsae", "beartype.beartype")
