"""Worlds: synthetic activations whose features and hierarchy are known.

config -> build (hierarchy, generators, directions) -> world -> files; source: a world in place of a store; toys: worlds
of two to a dozen features. The generator is that of SynthSAEBench (arXiv 2602.14687), and SAELens reads the same files.
"""

from jhsae.worlds.build import build_world as build_world
from jhsae.worlds.config import WorldConfig as WorldConfig
from jhsae.worlds.directions import largest_cosines as largest_cosines
from jhsae.worlds.files import SavedWorld as SavedWorld
from jhsae.worlds.files import load_world as load_world
from jhsae.worlds.files import read_world as read_world
from jhsae.worlds.files import save_world as save_world
from jhsae.worlds.generators import AbstractMagnitudes as AbstractMagnitudes
from jhsae.worlds.generators import AbstractProbabilities as AbstractProbabilities
from jhsae.worlds.generators import ConstantMagnitude as ConstantMagnitude
from jhsae.worlds.generators import ConstantProbability as ConstantProbability
from jhsae.worlds.generators import ExponentialMagnitudes as ExponentialMagnitudes
from jhsae.worlds.generators import FoldedNormal as FoldedNormal
from jhsae.worlds.generators import LinearMagnitudes as LinearMagnitudes
from jhsae.worlds.generators import LinearProbabilities as LinearProbabilities
from jhsae.worlds.generators import RandomProbabilities as RandomProbabilities
from jhsae.worlds.generators import Zipf as Zipf
from jhsae.worlds.generators import zipf as zipf
from jhsae.worlds.hierarchy import Hierarchy as Hierarchy
from jhsae.worlds.origin import Generators as Generators
from jhsae.worlds.origin import compensated as compensated
from jhsae.worlds.source import WorldActivations as WorldActivations
from jhsae.worlds.summary import Summary as Summary
from jhsae.worlds.toys import absorption as absorption
from jhsae.worlds.toys import hedging as hedging
from jhsae.worlds.toys import splitting as splitting
from jhsae.worlds.world import World as World
