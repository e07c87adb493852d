"""Comparison of two runs, or of two methods of one."""
