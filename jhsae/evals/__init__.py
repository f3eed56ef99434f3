"""Evaluations: (sae, data) -> named numbers, with the control beside the effect."""

from jhsae.evals.fidelity import fidelity as fidelity
from jhsae.evals.fidelity import parameters as parameters
from jhsae.evals.geometry import orthogonality as orthogonality
from jhsae.evals.splice import Spliced as Spliced
from jhsae.evals.splice import recovered as recovered
from jhsae.evals.splice import splice as splice
