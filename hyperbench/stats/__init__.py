"""Statistics of samples and of rounds: pure functions."""
