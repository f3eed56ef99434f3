"""What one feature does: its text, contexts, firings, logits, co-activation, density."""
