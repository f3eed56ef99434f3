"""Neuronpedia's files of an SAE: a bundle to upload, with its tables, features and examples."""
