"""Sparsifiers: pre-activations in, sparse codes out."""

from jhsae.sparsify.base import AbstractRule as AbstractRule
from jhsae.sparsify.base import AbstractSparsifier as AbstractSparsifier
from jhsae.sparsify.base import AbstractTopK as AbstractTopK
from jhsae.sparsify.batch import BatchTopK as BatchTopK
from jhsae.sparsify.budget import AbstractBudget as AbstractBudget
from jhsae.sparsify.budget import ExactL0 as ExactL0
from jhsae.sparsify.budget import MeanL0 as MeanL0
from jhsae.sparsify.budget import Threshold as Threshold
from jhsae.sparsify.gumbel import BinaryGumbelTopK as BinaryGumbelTopK
from jhsae.sparsify.gumbel import GumbelTopK as GumbelTopK
from jhsae.sparsify.jump import JumpReLU as JumpReLU
from jhsae.sparsify.topk import AnnealedTopK as AnnealedTopK
from jhsae.sparsify.topk import LeakyOffsetTopK as LeakyOffsetTopK
from jhsae.sparsify.topk import OffsetTopK as OffsetTopK
from jhsae.sparsify.topk import ReLU as ReLU
from jhsae.sparsify.topk import TopK as TopK
