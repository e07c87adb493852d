"""The backends of hyper_attention and make_plan, and which of them a call takes."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams, check_choice
from hyperattn_core.triton_backend import support

BACKENDS = ("auto", "torch", "triton", "oracle")
PLAN_BACKENDS = ("auto", "torch", "triton")


class BackendFallback(UserWarning):
    """On a CUDA GPU the call ran in PyTorch, as the Triton kernels cannot run it; said once per reason."""


def backend_for(
    device_type: str, dtype: torch.dtype, head_dim: int, value_dim: int, params: HyperAttentionParams | None = None
) -> tuple[str, str]:
    """The backend that "auto" takes and, where that is not Triton on a CUDA GPU, the reason in one line, else "".

    Sizes are D and Dv; params are the defaults if None.
    """
    if device_type != "cuda":
        return "torch", ""
    num_projections = (params or HyperAttentionParams()).num_projections
    reason = support.why_unsupported(torch.device(device_type), dtype, head_dim, value_dim, num_projections)
    return ("torch", reason) if reason else ("triton", "")


def chosen_backend(
    q: Tensor,
    value_dim: int,
    params: HyperAttentionParams | None,
    backend: str,
    allowed: tuple[str, ...] = BACKENDS,
    tile_size: int | None = None,
) -> str:
    """The backend that a call runs in: "torch", "triton" or "oracle".

    Args:
        q: queries (B, H, Nq, D).
        value_dim: Dv; D where only a plan is made.
        params: the estimator's parameters where the call makes a plan; None where it was made before.
        backend, allowed: the caller's choice, and those that there are.
        tile_size: queries per tile of the plan, where the caller has one or asks for one.

    Raises:
        ValueError: the backend is unknown, or cannot run this call.
        RuntimeError: backend="triton" and Triton does not import or is too old.
    """
    check_choice("backend", backend, allowed)
    if backend not in ("auto", "triton"):
        return backend
    if backend == "auto" and q.device.type != "cuda":
        return "torch"
    num_projections = params.num_projections if params is not None else None
    reason = support.why_unsupported(q.device, q.dtype, q.shape[3], value_dim, num_projections, tile_size)
    if reason is None:
        return "triton"
    if backend == "auto":
        _say_once(reason)
        return "torch"
    error = RuntimeError if reason == support.import_error() else ValueError
    raise error(f"{reason}; use backend='torch' (or 'auto', which does)")


def kernel_settings(dtype: torch.dtype = torch.bfloat16, head_dim: int = 64) -> dict[str, str]:
    """Triton's version and the configurations of the kernels on this GPU, as text; empty where they cannot run.

    The configuration for `dtype` and `head_dim` is chosen, that is measured, if no call has done so before.
    """
    if not torch.cuda.is_available() or support.why_unsupported(torch.device("cuda"), dtype, head_dim, head_dim, None):
        return {}
    import triton

    from hyperattn_core.triton_backend import configure, leaves

    device = torch.device("cuda", torch.cuda.current_device())
    configure.chosen(device, dtype, head_dim)
    configure.backward_config(device, dtype, head_dim)
    return {"triton": triton.__version__, **configure.describe(), **leaves.describe_leaves()}


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f"hyper_attention runs in PyTorch: {reason}", BackendFallback, stacklevel=4)
