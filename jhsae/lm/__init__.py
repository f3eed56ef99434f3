"""Language models in JAX: Hugging Face checkpoints in, residual streams out, and back into logits."""

from jhsae.lm.checkpoint import LanguageModel as LanguageModel
from jhsae.lm.checkpoint import bundled as bundled
from jhsae.lm.checkpoint import load as load
from jhsae.lm.checkpoint import save as save
from jhsae.lm.config import Gemma2Config as Gemma2Config
from jhsae.lm.gemma2 import Blocks as Blocks
from jhsae.lm.gemma2 import Gemma2 as Gemma2
from jhsae.lm.loss import cross_entropy as cross_entropy
