"""Comparison with golden values of the original implementations, row by row."""
