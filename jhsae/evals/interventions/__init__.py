"""An SAE inside its language model: codes read, latents edited, and logit differences attributed to them.

prompts (text -> token ids) -> edits (codes -> codes) -> model (the stream with them) -> steer, continuation,
attribution (what they do to the logits).
"""

from jhsae.evals.interventions.attribution import AbstractPath as AbstractPath
from jhsae.evals.interventions.attribution import AlongPath as AlongPath
from jhsae.evals.interventions.attribution import AtStream as AtStream
from jhsae.evals.interventions.attribution import Attribution as Attribution
from jhsae.evals.interventions.attribution import ablation_effects as ablation_effects
from jhsae.evals.interventions.attribution import attribute as attribute
from jhsae.evals.interventions.continuation import continued as continued
from jhsae.evals.interventions.edits import Ablate as Ablate
from jhsae.evals.interventions.edits import AbstractEdit as AbstractEdit
from jhsae.evals.interventions.edits import AbstractWithin as AbstractWithin
from jhsae.evals.interventions.edits import Add as Add
from jhsae.evals.interventions.edits import AddShare as AddShare
from jhsae.evals.interventions.edits import Everywhere as Everywhere
from jhsae.evals.interventions.edits import Set as Set
from jhsae.evals.interventions.edits import TimesParent as TimesParent
from jhsae.evals.interventions.edits import WhereParentActive as WhereParentActive
from jhsae.evals.interventions.model import Run as Run
from jhsae.evals.interventions.model import SplicedLM as SplicedLM
from jhsae.evals.interventions.model import with_sae as with_sae
from jhsae.evals.interventions.prompts import Prompts as Prompts
from jhsae.evals.interventions.prompts import token_id as token_id
from jhsae.evals.interventions.prompts import tokenised as tokenised
from jhsae.evals.interventions.steer import Steered as Steered
from jhsae.evals.interventions.steer import most_active as most_active
from jhsae.evals.interventions.steer import steer as steer
