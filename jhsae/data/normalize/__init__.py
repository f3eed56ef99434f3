"""Input normalisers: invertible transformations of an activation before it enters an SAE.

moments (statistics of stored rows) -> base (the interface) -> affine (the same for every token), token (a scale per
token).
"""

from jhsae.data.normalize.affine import CenterScale as CenterScale
from jhsae.data.normalize.affine import Identity as Identity
from jhsae.data.normalize.affine import Scale as Scale
from jhsae.data.normalize.affine import Standardize as Standardize
from jhsae.data.normalize.affine import Whiten as Whiten
from jhsae.data.normalize.base import AbstractNormalizer as AbstractNormalizer
from jhsae.data.normalize.base import Affine as Affine
from jhsae.data.normalize.base import PerToken as PerToken
from jhsae.data.normalize.base import times as times
from jhsae.data.normalize.moments import ArrayRows as ArrayRows
from jhsae.data.normalize.moments import RowSource as RowSource
from jhsae.data.normalize.sides import Between as Between
from jhsae.data.normalize.sides import SideBySide as SideBySide
from jhsae.data.normalize.token import CenteredUnitNorm as CenteredUnitNorm
from jhsae.data.normalize.token import ConstantNorm as ConstantNorm
from jhsae.data.normalize.token import LayerNorm as LayerNorm
from jhsae.data.normalize.token import UnitNorm as UnitNorm
