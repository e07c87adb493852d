"""What can be measured: a method is f(q, k, v, *, is_causal, **hyper) -> out, all tensors (B, H, N, D)."""
