"""What training minimises: an objective of named terms with scheduled weights."""

from jhsae.losses.base import AbstractTerm as AbstractTerm
from jhsae.losses.base import Objective as Objective
from jhsae.losses.orthogonal import BiOrthogonality as BiOrthogonality
from jhsae.losses.orthogonal import BiOrthogonalityRawSum as BiOrthogonalityRawSum
from jhsae.losses.orthogonal import CausalOrthogonality as CausalOrthogonality
from jhsae.losses.orthogonal import CausalOrthogonalityMinusParent as CausalOrthogonalityMinusParent
from jhsae.losses.orthogonal import CrossOrthogonality as CrossOrthogonality
from jhsae.losses.orthogonal import CrossOrthogonalityRowDiagonal as CrossOrthogonalityRowDiagonal
from jhsae.losses.reconstruct import ParentsOnly as ParentsOnly
from jhsae.losses.reconstruct import SquaredError as SquaredError
from jhsae.losses.sparsity import L1Active as L1Active
from jhsae.losses.sparsity import L1All as L1All
from jhsae.losses.sparsity import MeanL1Children as MeanL1Children
from jhsae.losses.sparsity import MeanL1Parents as MeanL1Parents
