"""Calls that PyTorch takes as a whole, under autocast, torch.compile, torch.export and the transforms of torch.func.

- autocast: inputs as fused attention has them under autocast, and work outside it
- implementations: the passes of each backend behind one interface
- ops: plan, attend and its gradient as custom operators
"""
