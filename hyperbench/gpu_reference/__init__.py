"""`make gpu`: the tests on the GPU, then the paper's figure and what belongs to it, within a budget of time.

Run as `python -m hyperbench.gpu_reference` from a checkout; every measurement is a `hyperbench run` of its own.
"""
