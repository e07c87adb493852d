"""The passes of a backend behind one interface."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hyperattn_core.exact_aten import Attended, BackwardInputs, Gradients
from hyperattn_core.planning.levels import CallShape
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan


class Implementation(Protocol):
    """Plans and attention of a backend, for calls that have levels.

    q is (B, H, Nq, D), k (B, Hkv, Nk, D), v (B, Hkv, Nk, Dv).
    """

    def default_tile_size(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
        """The tile size of a plan for this backend; head_dim is the larger of D and Dv."""

    def plan_sizes(self, shape: CallShape, settings: Settings) -> tuple[int, int]:
        """Elements of a packed plan: indices and weights."""

    def packed_plan(self, q: Tensor, k: Tensor, seed: int, settings: Settings, scale: float) -> Packed:
        """Hash, sort, pair and sample; probes and routing ask for the logits' factor `scale`."""

    def pack(self, plan: AttentionPlan) -> Packed:
        """Any plan in the layout of this backend."""

    def unpack(self, packed: Packed, shape: CallShape, seed: int) -> tuple[LevelPlan, ...]:
        """The levels of a packed plan, as views."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float) -> Attended:
        """Output and log-sum-exp at a packed plan."""

    def backward(self, inputs: BackwardInputs, packed: Packed, scale: float) -> Gradients:
        """The gradients of q, k and v."""


def implementation(backend: str) -> Implementation:
    """The passes of "torch" or "triton", which is imported when it is asked for."""
    if backend == "triton":
        from hyperattn_core.triton_backend import attention as triton_passes

        return triton_passes
    from hyperattn_core.torch_backend import attention as torch_passes

    return torch_passes
