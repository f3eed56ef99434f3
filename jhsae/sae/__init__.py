"""Sparse autoencoders: flat and hierarchical, one skeleton with small parts in its slots."""

from jhsae.sae.base import AbstractSAE as AbstractSAE
from jhsae.sae.base import EncoderMacs as EncoderMacs
from jhsae.sae.base import Forward as Forward
from jhsae.sae.base import TopLevel as TopLevel
from jhsae.sae.base import TreeForward as TreeForward
from jhsae.sae.base import TreeSizes as TreeSizes
from jhsae.sae.base import require as require
from jhsae.sae.build import mixture_of_experts_v2 as mixture_of_experts_v2
from jhsae.sae.build import teacher_initialized as teacher_initialized
from jhsae.sae.children import Residual as Residual
from jhsae.sae.children import ScaledByParent as ScaledByParent
from jhsae.sae.children import Token as Token
from jhsae.sae.children import Unscaled as Unscaled
from jhsae.sae.encode import Encoded as Encoded
from jhsae.sae.encode import route_and_encode as route_and_encode
from jhsae.sae.flat import FlatSAE as FlatSAE
from jhsae.sae.flat import random_unit_rows as random_unit_rows
from jhsae.sae.gated import GatedSAE as GatedSAE
from jhsae.sae.hierarchical import HierarchicalSAE as HierarchicalSAE
from jhsae.sae.matching_pursuit import MatchingPursuitSAE as MatchingPursuitSAE
from jhsae.sae.units import DecoderNormUnit as DecoderNormUnit
from jhsae.sae.units import PlainUnit as PlainUnit
from jhsae.usage import Context as Context
from jhsae.usage import FeatureStats as FeatureStats
