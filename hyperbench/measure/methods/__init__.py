"""Methods, one file a family: functions f(q, k, v, *, is_causal, **hyper) -> out, all tensors (B, H, N, D)."""
