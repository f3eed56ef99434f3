"""Several devices and processes: mesh, joining processes, watchdog, preemption, device memory."""
