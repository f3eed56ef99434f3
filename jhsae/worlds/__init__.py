"""Worlds: synthetic activations whose features and hierarchy are known."""

from jhsae.worlds.hierarchy import Hierarchy as Hierarchy
