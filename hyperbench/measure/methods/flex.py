"""FlexAttention of PyTorch (Dong et al., 2024), compiled, as exact attention; uncompiled it would hold N x N scores."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = ("float16", "bfloat16", "float32")
#: Positions of a block, of queries and of keys: what FlexAttention takes unless told otherwise.
_BLOCK = 128
#: Shapes, dtypes and masks that one process compiles for; beyond the limit a call raises, and nothing runs uncompiled.
_MOST_COMPILED = 64


class Flex:
    """FlexAttention with no mask or a causal one, through torch.compile; on a CPU it has a forward pass alone."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        """Exact attention of q (B, H, N, D) over k and v (B, Hkv, N, D).

        Raises NotImplementedError for a backward pass on a CPU.
        """
        if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            raise NotImplementedError("FlexAttention has no backward pass on a CPU")
        mask = causal_block_mask(q.shape[2], str(q.device)) if is_causal else None
        out: Tensor = _compiled()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return out

    def prepare(
        self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The same for inputs of these shapes, compiled."""
        attend = functools.partial(self, is_causal=is_causal)
        attend(q, k, v)
        return attend

    def implementation(self, device: str) -> str:
        """The name for the table, with the version of PyTorch that brings it."""
        return f"torch-{torch.__version__.partition('+')[0]}-flex-{device}"

    def why_unsupported(self, device: str, dtype: str) -> str | None:
        """The reason why it cannot be compiled there, or None."""
        if dtype not in _DTYPES:
            return f"FlexAttention takes {', '.join(_DTYPES)}, not {dtype}"
        if device == "cuda":
            return None if importlib.util.find_spec("triton") else "FlexAttention needs Triton to be compiled"
        compiler = os.environ.get("CXX", "g++")
        headers = Path(sysconfig.get_path("include"), "Python.h")
        if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
            return "FlexAttention needs a CPU with AVX2"
        if shutil.which(compiler) is None:
            return f"FlexAttention needs a C++ compiler to be compiled, and {compiler} is not there"
        if not headers.is_file():
            return f"FlexAttention needs the headers of Python to be compiled, and {headers} is not there"
        if " " in torch.__file__:
            return "FlexAttention cannot be compiled where PyTorch lies in a folder with a space in its name"
        return None


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Older versions of PyTorch have one limit, of eight.
    takes_limit = "recompile_limit" in inspect.signature(torch.compile).parameters
    limit: dict[str, Any] = {"recompile_limit": _MOST_COMPILED} if takes_limit else {}
    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True, dynamic=False, **limit)
    return compiled


@functools.lru_cache(maxsize=8)
def causal_block_mask(seq_len: int, device: str) -> Any:
    """The causal BlockMask of a length: in row i of the blocks all before i are full, and i is half.

    PyTorch's own function would make it from N x N entries.
    """
    from torch.nn.attention.flex_attention import BlockMask

    rows = torch.arange(-(-seq_len // _BLOCK), device=device, dtype=torch.int32)
    table = rows.expand(1, 1, len(rows), len(rows))
    return BlockMask.from_kv_blocks(
        torch.ones_like(rows).view(1, 1, -1), table.transpose(2, 3).contiguous(), rows.view(1, 1, -1),
        table.contiguous(), BLOCK_SIZE=_BLOCK, mask_mod=_is_no_later, seq_lengths=(seq_len, seq_len),
    )  # fmt: skip


def _is_no_later(batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
    return query_at >= key_at


flex = Flex()
