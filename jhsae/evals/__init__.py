"""Evaluations: (sae, data) -> named numbers, with the control beside the effect."""

from jhsae.evals.absorption import AbsorptionRules as AbsorptionRules
from jhsae.evals.absorption import absorption as absorption
from jhsae.evals.fidelity import fidelity as fidelity
from jhsae.evals.fidelity import parameters as parameters
from jhsae.evals.geometry import orthogonality as orthogonality
from jhsae.evals.labels import Labels as Labels
from jhsae.evals.labels import RowLabels as RowLabels
from jhsae.evals.labels import concept_labels as concept_labels
from jhsae.evals.labels import read_labels as read_labels
from jhsae.evals.labels import wordnet_labels as wordnet_labels
from jhsae.evals.logistic import logistic as logistic
from jhsae.evals.probing import sparse_probing as sparse_probing
from jhsae.evals.purity import purity as purity
from jhsae.evals.splice import Spliced as Spliced
from jhsae.evals.splice import recovered as recovered
from jhsae.evals.splice import splice as splice
from jhsae.evals.stability import match as match
from jhsae.evals.stability import stability as stability
from jhsae.evals.stability import subspaces as subspaces
from jhsae.evals.steering import SteeringTarget as SteeringTarget
from jhsae.evals.steering import class_targets as class_targets
from jhsae.evals.steering import own_targets as own_targets
from jhsae.evals.steering import steering as steering
