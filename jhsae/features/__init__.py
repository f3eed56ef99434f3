"""Per-feature statistics of a trained SAE: firings, density, contexts, logits, co-activation, token text."""
