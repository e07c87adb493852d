"""The configuration of a run: composed by Hydra, checked and typed."""
