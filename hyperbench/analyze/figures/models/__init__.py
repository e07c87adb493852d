"""Figures of language models: one file a figure, as in the folder above."""
