"""Teachers: concepts of an ontology, estimated as directions of a language model, from which an SAE is initialised."""

from jhsae.teacher.artifact import Teacher as Teacher
from jhsae.teacher.artifact import build as build
from jhsae.teacher.concepts import Prompts as Prompts
from jhsae.teacher.estimate import AbstractEstimator as AbstractEstimator
from jhsae.teacher.estimate import Directions as Directions
from jhsae.teacher.estimate import LDAEstimator as LDAEstimator
from jhsae.teacher.estimate import MeanEstimator as MeanEstimator
from jhsae.teacher.estimate import ParkEstimator as ParkEstimator
from jhsae.teacher.estimate import estimate as estimate
from jhsae.teacher.ontology import Ontology as Ontology
from jhsae.teacher.ontology import from_wordnet as from_wordnet
from jhsae.teacher.samples import AbstractEvidence as AbstractEvidence
from jhsae.teacher.samples import Samples as Samples
from jhsae.teacher.samples import Unembedding as Unembedding
from jhsae.teacher.samples import View as View
from jhsae.teacher.select import Concept as Concept
from jhsae.teacher.select import SelectionLimits as SelectionLimits
from jhsae.teacher.select import select as select
from jhsae.teacher.summary import summary as summary
from jhsae.teacher.validate import readout as readout
from jhsae.teacher.validate import validate as validate
from jhsae.teacher.vocabulary import Vocabulary as Vocabulary
from jhsae.teacher.vocabulary import single_tokens as single_tokens
