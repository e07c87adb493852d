"""Ahead-of-time compilation of the GPU kernels: registers, spills, shared memory."""
