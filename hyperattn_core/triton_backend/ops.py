"""Custom operators: plan, attend and its gradient, with fake tensors, so that torch.compile takes a call as a whole.

The operators are defined once, on import. `settings` is Settings.to_list(): plain integers, as operators take them; a
seed is written out, as it may have more than 64 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperattn_core.exact_aten import BackwardInputs, Gradients
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.backward import backward
from hyperattn_core.triton_backend.configure import attend_config
from hyperattn_core.triton_backend.forward import forward
from hyperattn_core.triton_backend.geometry import Settings, geometry
from hyperattn_core.triton_backend.packing import Packed
from hyperattn_core.triton_backend.plan import packed_plan

_DEVICES = ("cpu", "cuda")

# Small tables are kept on the device across calls, which inductor's own graph memory would take for a leak.
_TAGS = tuple(tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None)

torch.library.define(
    "hyperattn::plan", "(Tensor q, Tensor k, str seed, int[] settings) -> (Tensor, Tensor)", tags=_TAGS
)
torch.library.define(
    "hyperattn::attend",
    "(Tensor q, Tensor k, Tensor v, Tensor data, Tensor weights, int[] settings, float scale) -> (Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define(
    "hyperattn::attend_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor data, "
    "Tensor weights, int[] settings, float scale) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


@torch.library.impl("hyperattn::plan", _DEVICES)
def _plan(q: Tensor, k: Tensor, seed: str, settings: list[int]) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(q):
        packed = packed_plan(q.detach(), k.detach(), int(seed), Settings.from_list(settings))
    return packed.data, packed.weights


@torch.library.register_fake("hyperattn::plan")
def _(q: Tensor, k: Tensor, seed: str, settings: list[int]) -> tuple[Tensor, Tensor]:
    # As numbers: a plan's size is that of one shape, so a traced call is one of its shape.
    batch, heads, kv_heads, queries, keys = (int(size) for size in plan_shape(q, k))
    where = geometry((batch, heads, kv_heads, queries, keys), Settings.from_list(settings))
    return q.new_empty(where.data_size, dtype=torch.int32), q.new_empty(where.weight_size, dtype=torch.float32)


@torch.library.impl("hyperattn::attend", _DEVICES)
def _attend(
    q: Tensor, k: Tensor, v: Tensor, data: Tensor, weights: Tensor, settings: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    packed = Packed(data, weights, Settings.from_list(settings))
    with torch.cuda.device_of(q):
        config = attend_config(q.device, q.dtype, max(q.shape[3], v.shape[3]), packed.settings.tile_size)
        return forward(q, k, v, packed, scale, config)


@torch.library.register_fake("hyperattn::attend")
def _(
    q: Tensor, k: Tensor, v: Tensor, data: Tensor, weights: Tensor, settings: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.impl("hyperattn::attend_backward", _DEVICES)
def _attend_backward(*arguments: Any) -> Gradients:
    *tensors, data, weights, settings, scale = arguments
    inputs = BackwardInputs(*tensors)
    with torch.cuda.device_of(inputs.q):
        return backward(inputs, Packed(data, weights, Settings.from_list(settings)), scale)


@torch.library.register_fake("hyperattn::attend_backward")
def _(*arguments: Any) -> Gradients:
    return tuple(x.new_empty(x.shape) for x in arguments[2:5])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, data, weights, settings, scale = inputs
    ctx.save_for_backward(q, k, v, *output, data, weights)
    ctx.settings, ctx.scale = settings, scale
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, data, weights = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    grads = torch.ops.hyperattn.attend_backward(
        grad_out, grad_lse, q, k, v, out, lse, data, weights, ctx.settings, ctx.scale
    )
    return (*grads, None, None, None, None)


def _refuse(ctx: Any, *grads: Tensor | None) -> None:
    # Without this PyTorch would warn, and go on as if the gradient were a constant.
    raise RuntimeError("hyper_attention has no second derivative: its gradient is once_differentiable")


torch.library.register_autograd("hyperattn::attend", _backward, setup_context=_save)
torch.library.register_autograd("hyperattn::attend_backward", _refuse)

plan = torch.ops.hyperattn.plan
attend = torch.ops.hyperattn.attend
