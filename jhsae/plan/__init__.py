"""``jhsae plan``: memory, FLOPs, communication and time of a run on TPUs, from the compiler and a roofline."""
