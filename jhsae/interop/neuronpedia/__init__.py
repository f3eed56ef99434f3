"""Neuronpedia's files of an SAE: a bundle to upload, with its tables, features and examples."""

from jhsae.interop.neuronpedia.bundle import source_sets as source_sets
from jhsae.interop.neuronpedia.bundle import write as write
from jhsae.interop.neuronpedia.tables import Dashboard as Dashboard
