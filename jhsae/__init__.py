"""jhsae: hierarchical sparse autoencoders on language-model activations, in JAX and Equinox."""
