"""Exact attention: PyTorch's scaled_dot_product_attention held to one of its kernels, and the flash-attn package."""

from __future__ import annotations

import importlib.metadata
import importlib.util

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
        """Why this kernel cannot run there, or None."""
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
        """Why the package cannot run there, or None."""
        if importlib.util.find_spec("flash_attn") is None:
            return "the flash-attn package is not installed (pip install 'hyperbench[flash]')"
        if device != "cuda":
            return "the flash-attn package needs a CUDA GPU"
        return None if dtype in _HALF else f"the flash-attn package takes {' or '.join(_HALF)}, not {dtype}"


flash2 = Sdpa(SDPBackend.FLASH_ATTENTION, "flash", needs_cuda=False, cuda_dtypes=_HALF)
cudnn = Sdpa(SDPBackend.CUDNN_ATTENTION, "cudnn", needs_cuda=True, cuda_dtypes=_HALF)
math = Sdpa(SDPBackend.MATH, "math", needs_cuda=False, cuda_dtypes=("float64", "float32", *_HALF))
flash_attn = FlashAttn()
