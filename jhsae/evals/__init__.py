"""Evaluations: (sae, data) -> named numbers, with the control beside the effect."""

from jhsae.evals.fidelity import fidelity as fidelity
from jhsae.evals.fidelity import parameters as parameters
from jhsae.evals.geometry import delta_off_90 as delta_off_90
from jhsae.evals.geometry import orthogonality as orthogonality
from jhsae.evals.geometry import orthogonality_units as orthogonality_units
from jhsae.evals.nulls import Comparison as Comparison
from jhsae.evals.nulls import compare as compare
from jhsae.evals.nulls import sentence as sentence
from jhsae.evals.splice import Spliced as Spliced
from jhsae.evals.splice import recovered as recovered
from jhsae.evals.splice import splice as splice
from jhsae.evals.truth import splitting as splitting
from jhsae.evals.truth import truth as truth
