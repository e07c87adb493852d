"""Configurations of the kernels, and the choice among them."""
