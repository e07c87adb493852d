"""The estimator in PyTorch, for any device."""
