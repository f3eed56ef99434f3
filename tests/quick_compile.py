"""XLA flags for programs that run once or twice: less is spent on optimising their machine code.

XLA ends the process at a flag that it does not know, so the second is given to the versions that have it alone; on
newer ones the tests go through the fusion emitters.
"""

from jaxlib.version import __version_info__

FLAGS = "--xla_backend_optimization_level=0"
if __version_info__ < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"


def on_devices(count: int) -> str:
    """The flags of a process with `count` CPU devices."""
    return f"{FLAGS} --xla_force_host_platform_device_count={count}"
