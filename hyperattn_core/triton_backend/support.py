"""Check that the kernels can run a call. Triton is imported only for a device that can use it."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256
MAX_NUM_PROJECTIONS = 10
MAX_TILE_SIZE = 128
MIN_CAPABILITY = (8, 0)
MIN_TRITON = (3, 6)


def interpreted() -> bool:
    """True if kernels run in Triton's interpreter, which takes CPU tensors: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@functools.cache
def import_error() -> str | None:
    """Reason why Triton does not import, or is too old, in one line; None if it serves."""
    try:
        version = str(importlib.import_module("triton").__version__)
    # A broken installation may raise anything on import; all of it is the caller's to read as one line.
    except Exception as error:
        return f"Triton does not import ({' '.join(str(error).split()) or type(error).__name__})"
    # tl.histogram of older ones counts wrongly here, and what is sorted by its counts would be stored out of bounds.
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_TRITON:
        return f"the Triton kernels need Triton {MIN_TRITON[0]}.{MIN_TRITON[1]} or newer, this is {version}"
    return None


def traced_as_constant(function: _Function) -> _Function:
    """Let torch.compile call the function while it traces, and take the answer for a constant.

    torch.compiler.assume_constant_result sets the same mark, but loads the whole compiler to do so.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@traced_as_constant
def why_unsupported(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    num_projections: int | None,
    tile_size: int | None = None,
) -> str | None:
    """Reason why the kernels cannot run such a call, in one line; None if they can.

    Args:
        device: of q, k and v; a "cuda" without a number is the current one.
        dtype: of q, k and v.
        head_dim: D.
        value_dim: Dv.
        num_projections: r where a plan is to be made, which has a limit; None for attention at a plan, which has none.
        tile_size: queries per tile where that is given.
    """
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"the Triton kernels need tensors on a CUDA GPU, got {device.type}"
    if device.type == "cuda" and torch.version.hip is not None:
        return f"the Triton kernels are for NVIDIA GPUs, and this PyTorch is built for ROCm {torch.version.hip}"
    if dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        return f"the Triton kernels take {names}, got {str(dtype).removeprefix('torch.')}"
    if max(head_dim, value_dim) > MAX_HEAD_DIM:
        return f"the Triton kernels take head sizes up to {MAX_HEAD_DIM}, got {max(head_dim, value_dim)}"
    if num_projections is not None and num_projections > MAX_NUM_PROJECTIONS:
        return (
            f"the Triton kernels take num_projections up to {MAX_NUM_PROJECTIONS}, "
            f"got num_projections={num_projections}"
        )
    if tile_size is not None and tile_size > MAX_TILE_SIZE:
        return f"the Triton kernels take plans of tile_size up to {MAX_TILE_SIZE}, got tile_size={tile_size}"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            return (
                f"the Triton kernels need compute capability 8.0 or newer, this GPU has {capability[0]}.{capability[1]}"
            )
    return import_error()
