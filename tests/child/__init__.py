"""Tests of hyperbench.child."""
