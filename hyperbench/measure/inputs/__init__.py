"""Families of inputs, one module each."""
