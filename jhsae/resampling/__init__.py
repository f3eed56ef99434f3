"""Resampling: after an update dead features are re-initialised at inputs with a large error; forests change shape.

``part(sae, opt_state, optimizer, forward, step, key) -> (sae, opt_state, resampled)`` moves parameters beside the
optimizer, which a loss term cannot; the terms that revive by gradient are in `losses.revive`. `Several` runs several.
"""

from jhsae.resampling.base import AbstractResampling as AbstractResampling
from jhsae.resampling.base import NoResampling as NoResampling
from jhsae.resampling.base import Several as Several
from jhsae.resampling.dead import Resample as Resample
from jhsae.resampling.merge import MergeAlike as MergeAlike
from jhsae.resampling.restart import FillEmpty as FillEmpty
from jhsae.resampling.restart import GrowLevel as GrowLevel
from jhsae.resampling.restart import RestartDead as RestartDead
from jhsae.resampling.roots import PromoteAlike as PromoteAlike
from jhsae.resampling.roots import RemoveContained as RemoveContained
