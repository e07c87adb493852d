"""Timing of calls: passes in turns, samples, stages of a pass."""
