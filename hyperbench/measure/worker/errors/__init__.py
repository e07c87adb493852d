"""The approximation error against a reference."""
