"""The estimator in fused Triton kernels for NVIDIA GPUs.

- geometry: layout of a plan, from sizes alone; device_tables: its parts kept on the device; packing: plans as buffers
- plan: hash, sort, pair and sample; forward: attend and merge; backward: the gradients; leaves: the exact causal leaves
- tuning: configurations of the kernels, and the choice among them; configure: the choice for a device, measured
- ops, attention: custom operators with fake tensors and gradients, and the calls; stages: their steps, to be timed
- kernels: the Triton code

Nothing here is imported before a call asks for it; support, which says whether a call can run, imports no Triton.
"""
