"""Evaluations: (sae, data) -> named numbers, with the control beside the effect."""

from jhsae.evals.fidelity import fidelity as fidelity
from jhsae.evals.fidelity import parameters as parameters
from jhsae.evals.fidelity import reconstruct as reconstruct
from jhsae.evals.geometry import orthogonality as orthogonality
from jhsae.evals.splice import Spliced as Spliced
from jhsae.evals.splice import recovered as recovered
from jhsae.evals.splice import splice as splice
from jhsae.features.contexts import expert_atoms as expert_atoms
from jhsae.features.contexts import sparse_codes as sparse_codes
from jhsae.features.contexts import spread_features as spread_features
from jhsae.features.contexts import top_contexts as top_contexts
