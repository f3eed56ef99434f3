"""Language models in JAX: load Hugging Face checkpoints, read residual streams, run on from them to logits."""

from jhsae.lm.base import AbstractConfig as AbstractConfig
from jhsae.lm.base import AbstractLM as AbstractLM
from jhsae.lm.base import Family as Family
from jhsae.lm.checkpoint import LanguageModel as LanguageModel
from jhsae.lm.checkpoint import bundled as bundled
from jhsae.lm.checkpoint import load as load
from jhsae.lm.checkpoint import save as save
from jhsae.lm.families import config_of as config_of
from jhsae.lm.families import shapes as shapes
from jhsae.lm.families.gemma2 import Blocks as Blocks
from jhsae.lm.families.gemma2 import Gemma2 as Gemma2
from jhsae.lm.families.gemma2_config import Gemma2Config as Gemma2Config
from jhsae.lm.families.llama import Llama as Llama
from jhsae.lm.families.llama import LlamaBlocks as LlamaBlocks
from jhsae.lm.families.llama_config import LlamaConfig as LlamaConfig
from jhsae.lm.families.neox import NeoX as NeoX
from jhsae.lm.families.neox import NeoXBlocks as NeoXBlocks
from jhsae.lm.families.neox_config import NeoXConfig as NeoXConfig
from jhsae.lm.loss import cross_entropy as cross_entropy
from jhsae.lm.random_weights import with_random_weights as with_random_weights
from jhsae.lm.sharding import shardings as shardings
from jhsae.lm.tokenizer import fingerprint as fingerprint
