"""The estimator in fused Triton kernels for NVIDIA GPUs.

- geometry: where everything of a plan lies, from sizes alone; device_tables: what of it is kept on the device
- kernel_table, plan_kernels, pair_kernels, plan: hash, sort, pair and sample
- attend_kernels, forward: attend and merge; leaves: the exact causal leaves
- query_grad_kernels, key_grad_kernels, sample_grad_kernels, backward: the gradients
- stages: the steps of a call one by one, to be timed
- ops, attention: custom operators with fake tensors and gradients, and the call
- tuning, configure: configurations of the attend kernel, and the choice among them
- call_sizes, model: bytes and operations of every launch, and the peak of memory, from sizes alone
- builds, aot: ahead-of-time compilation, no device needed

Nothing here is imported before a call asks for it; support, which says whether a call can run, imports no Triton.
"""
