"""Comparison with golden numbers of the original implementations, row by row."""
