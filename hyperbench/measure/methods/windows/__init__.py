"""Exact attention over a window of keys around each query and the first tokens, in linear time and memory."""
