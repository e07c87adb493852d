"""Scores of language models: means over examples, beside those of exact attention."""
