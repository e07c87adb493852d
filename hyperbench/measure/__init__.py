"""Measurement: runs methods and writes to the store. The only part of hyperbench that imports torch."""
