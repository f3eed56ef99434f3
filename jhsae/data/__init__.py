"""Activation data: text, packing, the store on disk, batches, and input normalisers.

text -> pack -> (a language model) -> writer -> store -> loader -> normalize; `jhsae.worlds` needs no language model.
"""

from jhsae.data.aligned import Aligned as Aligned
from jhsae.data.aligned import Stores as Stores
from jhsae.data.aligned import mean_of as mean_of
from jhsae.data.aligned import open_stores as open_stores
from jhsae.data.aligned import places_of as places_of
from jhsae.data.framing import Framing as Framing
from jhsae.data.framing import opens_with_bos as opens_with_bos
from jhsae.data.framing import ordinary as ordinary
from jhsae.data.framing import special_ids as special_ids
from jhsae.data.from_array import write_array as write_array
from jhsae.data.hook import Hook as Hook
from jhsae.data.loader import Batches as Batches
from jhsae.data.loader import batches_per_epoch as batches_per_epoch
from jhsae.data.loader import make_loader as make_loader
from jhsae.data.manifest import Manifest as Manifest
from jhsae.data.manifest import Origin as Origin
from jhsae.data.normalize import AbstractNormalizer as AbstractNormalizer
from jhsae.data.normalize import Affine as Affine
from jhsae.data.normalize import ArrayRows as ArrayRows
from jhsae.data.normalize import Between as Between
from jhsae.data.normalize import CenteredUnitNorm as CenteredUnitNorm
from jhsae.data.normalize import CenterScale as CenterScale
from jhsae.data.normalize import ConstantNorm as ConstantNorm
from jhsae.data.normalize import Identity as Identity
from jhsae.data.normalize import LayerNorm as LayerNorm
from jhsae.data.normalize import PerToken as PerToken
from jhsae.data.normalize import RowSource as RowSource
from jhsae.data.normalize import Scale as Scale
from jhsae.data.normalize import SideBySide as SideBySide
from jhsae.data.normalize import Standardize as Standardize
from jhsae.data.normalize import UnitNorm as UnitNorm
from jhsae.data.normalize import Whiten as Whiten
from jhsae.data.normalize import times as times
from jhsae.data.pack import pack as pack
from jhsae.data.pack import packed as packed
from jhsae.data.same_model import ModelName as ModelName
from jhsae.data.same_model import same_model as same_model
from jhsae.data.statistics import Statistics as Statistics
from jhsae.data.store import Store as Store
from jhsae.data.text import HuggingFaceText as HuggingFaceText
from jhsae.data.text import TextFiles as TextFiles
from jhsae.data.text import WordNetGlosses as WordNetGlosses
from jhsae.data.writer import Writer as Writer
