"""``jhsae bench``: our training step against the original's, each op against its alternatives, the loader, a run."""
