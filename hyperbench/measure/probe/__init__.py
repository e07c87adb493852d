"""A short process that answers what only PyTorch knows."""
