"""Residual streams of a language model: into stores, or straight into training."""
