"""``jhsae plan``: what a run needs on a slice of TPUs, by the compiler and a roofline, before it is rented."""
