"""Methods that change settings of the process: right answers, and other conditions for whoever comes after them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.odd_methods import exact

#: What each method does before it answers, by its name.
CHANGES: dict[str, Callable[[], object]] = {
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "new_precision": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "gradients": lambda: torch.set_grad_enabled(False),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("cpu"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "sdp": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "patched": lambda: setattr(F, "scaled_dot_product_attention", lambda *inputs, **options: inputs[2]),
    "environment": lambda: os.environ.update(OMP_WAIT_POLICY="active"),
}
seen: list[int] = []


def _method(change: Callable[[], object]) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        out = exact(q, k, v, is_causal=is_causal)
        change()
        return out

    return attention


def __getattr__(name: str) -> Any:
    try:
        return _method(CHANGES[name])
    except KeyError:
        raise AttributeError(name) from None


def witness(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Attention that notes the number of threads it is given."""
    seen.append(torch.get_num_threads())
    return exact(q, k, v, is_causal=is_causal)


_calls = 0


def later(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Attention that changes the number of threads once, in a call that is timed."""
    global _calls
    _calls += 1
    if _calls == CALLS_BEFORE:
        torch.set_num_threads(torch.get_num_threads() + 1)
    return exact(q, k, v, is_causal=is_causal)


#: More calls than the checks make; a test sets it.
CALLS_BEFORE = 1 << 30


def in_the_backward_pass(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Attention whose backward pass changes a setting."""
    out = exact(q, k, v, is_causal=is_causal)
    if out.requires_grad:
        out.register_hook(lambda grad: torch.set_float32_matmul_precision("medium"))
    return out
