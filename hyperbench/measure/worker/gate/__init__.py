"""The correctness gate: what a method must show before and while it is timed."""
