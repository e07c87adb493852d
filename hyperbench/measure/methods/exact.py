"""Exact attention: PyTorch's scaled_dot_product_attention held to one of its kernels, and the flash-attn package."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

_HALF = ("float16", "bfloat16")


class Sdpa:
    """scaled_dot_product_attention restricted to one backend, so that no slower kernel takes over in silence."""

    def __init__(self, backend: SDPBackend, label: str, *, needs_cuda: bool, cuda_dtypes: tuple[str, ...]) -> None:
        self._backend = backend
        self._label = label
        self._needs_cuda = needs_cuda
        self._cuda_dtypes = cuda_dtypes

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        """Attention of q (B, H, N, D) over k and v (B, Hkv, N, D)."""
        with sdpa_kernel(self._backend):
            return scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1])

    def implementation(self, device: str) -> str:
        """The name of the kernel for the table, with the version of PyTorch that brings it."""
        return f"torch-{torch.__version__.partition('+')[0]}-sdpa-{self._label}-{device}"

    def why_unsupported(self, device: str, dtype: str) -> str | None:
        """The reason why this kernel cannot run there, or None."""
        if device == "cpu":
            return f"the {self._label} kernel of PyTorch needs a CUDA GPU" if self._needs_cuda else None
        if dtype not in self._cuda_dtypes:
            return f"the {self._label} kernel takes {' or '.join(self._cuda_dtypes)} on CUDA, not {dtype}"
        return None


class FlashAttn:
    """FlashAttention-2 as its own package ships it; CUDA only."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        """Attention of q (B, H, N, D) over k and v (B, Hkv, N, D); the package's own layout is (B, N, H, D)."""
        from flash_attn import flash_attn_func

        out: Tensor = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=is_causal)
        return out.transpose(1, 2)

    def implementation(self, device: str) -> str:
        """The name and version of the package."""
        return f"flash-attn-{importlib.metadata.version('flash-attn')}-{device}"

    def why_unsupported(self, device: str, dtype: str) -> str | None:
        """The reason why the package cannot run there, or None."""
        if not flash_attn_imports():
            return "the flash-attn package is not installed or does not import (pip install 'hyperbench[flash]')"
        if device != "cuda":
            return "the flash-attn package needs a CUDA GPU"
        return None if dtype in _HALF else f"the flash-attn package takes {' or '.join(_HALF)}, not {dtype}"


class Flash2:
    """FlashAttention-2: on CUDA its own package where that imports, else PyTorch's kernel; PyTorch's on the CPU."""

    def __init__(self, package: FlashAttn, kernel: Sdpa) -> None:
        self._package = package
        self._kernel = kernel

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        """Attention of q (B, H, N, D) over k and v (B, Hkv, N, D)."""
        return self._chosen(q.device.type)(q, k, v, is_causal=is_causal)

    def implementation(self, device: str) -> str:
        """The name of what runs there."""
        return self._chosen(device).implementation(device)

    def why_unsupported(self, device: str, dtype: str) -> str | None:
        """The reason why it cannot run there, or None."""
        return self._chosen(device).why_unsupported(device, dtype)

    def _chosen(self, device: str) -> FlashAttn | Sdpa:
        return self._package if device == "cuda" and flash_attn_imports() else self._kernel


@functools.cache
def flash_attn_imports() -> bool:
    """True if the flash-attn package is there and imports; one built for another PyTorch does not."""
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


flash_attn = FlashAttn()
flash2 = Flash2(flash_attn, Sdpa(SDPBackend.FLASH_ATTENTION, "flash", needs_cuda=False, cuda_dtypes=_HALF))
cudnn = Sdpa(SDPBackend.CUDNN_ATTENTION, "cudnn", needs_cuda=True, cuda_dtypes=_HALF)
math = Sdpa(SDPBackend.MATH, "math", needs_cuda=False, cuda_dtypes=("float64", "float32", *_HALF))
