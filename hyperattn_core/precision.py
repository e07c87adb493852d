"""PyTorch's setting that rounds the operands of float32 matrix products, which holds for a whole process."""

from __future__ import annotations

import torch


def rounds_products(device: torch.device, dtype: torch.dtype) -> bool:
    """True if products of this dtype may be made of operands in TF32 or bfloat16 on this device.

    torch.set_float32_matmul_precision("high" or "medium") asks for it, as do the settings fp32_precision and allow_tf32
    of torch.backends. What must keep all its digits, such as a log-sum-exp, then may be no operand of a product.
    """
    if dtype != torch.float32:
        return False
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    setting = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if setting is None:  # PyTorch 2.8 and older
        return torch.get_float32_matmul_precision() != "highest"
    return setting not in ("none", "ieee")


def planning_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which a plan takes products of x: float32, and float64 for float64 or where PyTorch may round them.

    What is hashed and what is sampled does not depend on that setting.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.float64 if rounds_products(x.device, dtype) else dtype
