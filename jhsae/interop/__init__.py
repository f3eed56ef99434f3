"""Other systems: golden numbers of the originals."""
