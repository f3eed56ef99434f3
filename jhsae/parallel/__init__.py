"""Several devices and processes: mesh, joining processes, watchdog, preemption, device memory.

One config runs on one CPU, on eight devices and on many hosts; ``mesh`` alone says how devices share the work.
``mesh.data`` of them share the batch and the optimizer's moments (ZeRO), ``mesh.expert`` the experts or the features;
sums are reduced within a host before they cross to another. Every device computes with its own experts under
``shard_map``, and the top k of a token is exact: each shard gives its k candidates, and ties break as on one device.
``tests/test_spread.py`` and ``tests/test_two_processes.py`` hold the losses of H-SAE, TopK and BatchTopK equal to 1e-5
over 50 steps on 1, 2 and 8 devices, on every mesh, and in two processes of four devices. A process that dies ends the
others with a message. Launch scripts: ``experiments/launch/``; work per device: ``experiments/scaling/``.
"""
