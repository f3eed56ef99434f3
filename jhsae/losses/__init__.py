"""The training objective: named terms with weights, which may follow a schedule.

Dead features: `AuxK`, `AuxKNormalized`, `DeadPreActivation` and the legacy `GhostGradients` and `GhostAtoms` are terms;
`jhsae.resampling.Resample`, the key ``resampling`` of ``jhsae train``, restarts them instead.
"""

from jhsae.losses.base import AbstractTerm as AbstractTerm
from jhsae.losses.base import Objective as Objective
from jhsae.losses.gated import GateL1 as GateL1
from jhsae.losses.gated import GateReconstruction as GateReconstruction
from jhsae.losses.gated import GateReconstructionFreeDecoder as GateReconstructionFreeDecoder
from jhsae.losses.jump import L0 as L0
from jhsae.losses.jump import DeadPreActivation as DeadPreActivation
from jhsae.losses.jump import QuadraticL0 as QuadraticL0
from jhsae.losses.jump import TanhL0 as TanhL0
from jhsae.losses.matryoshka import Prefixes as Prefixes
from jhsae.losses.orthogonal import BiOrthogonality as BiOrthogonality
from jhsae.losses.orthogonal import BiOrthogonalityRawSum as BiOrthogonalityRawSum
from jhsae.losses.orthogonal import CausalOrthogonality as CausalOrthogonality
from jhsae.losses.orthogonal import CausalOrthogonalityMinusParent as CausalOrthogonalityMinusParent
from jhsae.losses.orthogonal import CrossOrthogonality as CrossOrthogonality
from jhsae.losses.orthogonal import CrossOrthogonalityRowDiagonal as CrossOrthogonalityRowDiagonal
from jhsae.losses.prefix import Prefix as Prefix
from jhsae.losses.reconstruct import ParentsOnly as ParentsOnly
from jhsae.losses.reconstruct import SquaredError as SquaredError
from jhsae.losses.revive import AuxK as AuxK
from jhsae.losses.revive import AuxKNormalized as AuxKNormalized
from jhsae.losses.revive import GhostAtoms as GhostAtoms
from jhsae.losses.revive import GhostGradients as GhostGradients
from jhsae.losses.revive import MatryoshkaAuxK as MatryoshkaAuxK
from jhsae.losses.sparsity import AnnealedLp as AnnealedLp
from jhsae.losses.sparsity import Contributions as Contributions
from jhsae.losses.sparsity import L1Active as L1Active
from jhsae.losses.sparsity import L1All as L1All
from jhsae.losses.sparsity import MeanL1Children as MeanL1Children
from jhsae.losses.sparsity import MeanL1Parents as MeanL1Parents
