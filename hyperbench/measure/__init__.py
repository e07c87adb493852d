"""Measurement: run methods and write records to the store. The only package of hyperbench that imports torch."""
