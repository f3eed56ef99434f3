"""The verbs of the command line: one file per word that can be typed."""
