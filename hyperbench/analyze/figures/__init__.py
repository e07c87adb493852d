"""One file a figure; each is found by its name."""
