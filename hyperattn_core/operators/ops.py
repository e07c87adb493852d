"""Custom operators: plan, attend and its gradient, which torch.compile and torch.export take as a whole.

`backend` is "torch" or "triton". `settings` is Settings.to_list(): plain integers, as operators take them. A seed of
more than 64 bits is written out in `long_seed`. A plan without levels, that of an exact call, is two empty tensors.

Inside an operator nothing follows autocast. torch.compile and torch.export ask for gradients that are registered,
torch.func for an autograd.Function: `attend` takes the one that works where it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from hyperattn_core.exact import exact_backward, exact_forward
from hyperattn_core.exact_aten import Attended, BackwardInputs, Gradients
from hyperattn_core.operators.autocast import outside_autocast
from hyperattn_core.operators.implementations import implementation
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.support import traced_as_constant

# Small tables are kept on the device, which inductor's own graph memory would take for a leak.
_TAGS = tuple(tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None)
_WEIGHT_DTYPES = {"torch": torch.float64, "triton": torch.float32}
_PLAN = "Tensor data, Tensor weights, str backend, int[] settings, float scale"

torch.library.define(
    "hyperattn::plan",
    "(Tensor q, Tensor k, SymInt seed, str long_seed, str backend, int[] settings, float scale) -> (Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define("hyperattn::attend", f"(Tensor q, Tensor k, Tensor v, {_PLAN}) -> (Tensor, Tensor)", tags=_TAGS)
torch.library.define(
    "hyperattn::attend_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_PLAN}) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def no_plan(q: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The plan of an exact call."""
    return q.new_empty(0, dtype=torch.int32), q.new_empty(0, dtype=_WEIGHT_DTYPES[backend])


@torch.library.impl("hyperattn::plan", "default")
def _plan(
    q: Tensor, k: Tensor, seed: int, long_seed: str, backend: str, settings: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    passes, unpacked = implementation(backend), Settings.from_list(settings)
    if passes.plan_sizes(plan_shape(q, k), unpacked) == (0, 0):
        return no_plan(q, backend)
    with outside_autocast(q.device.type):
        packed = passes.packed_plan(q, k, int(long_seed) if long_seed else seed, unpacked, scale)
    return packed.data, packed.weights


@torch.library.register_fake("hyperattn::plan")
def _(
    q: Tensor, k: Tensor, seed: int, long_seed: str, backend: str, settings: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    shape = plan_shape(q, k)
    if all(isinstance(size, int) for size in shape):
        sizes = implementation(backend).plan_sizes(shape, Settings.from_list(settings))
    else:
        # The number of levels follows from the length, so that no formula of the sizes holds for all lengths.
        context = torch.library.get_ctx()
        sizes = (context.new_dynamic_size(), context.new_dynamic_size())  # type: ignore[assignment]
    return q.new_empty(sizes[0], dtype=torch.int32), q.new_empty(sizes[1], dtype=_WEIGHT_DTYPES[backend])


@torch.library.impl("hyperattn::attend", "default")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, data: Tensor, weights: Tensor, backend: str, settings: list[int], scale: float
) -> Attended:
    packed = Packed(data, weights, Settings.from_list(settings))
    with outside_autocast(q.device.type):
        if data.numel() == 0:
            q, k, v = (x.contiguous() for x in (q, k, v))
            out, lse = exact_forward(q, k, v, packed.settings.is_causal, scale)
            return out.contiguous(), lse.contiguous().double()
        return implementation(backend).forward(q, k, v, packed, scale)


@torch.library.register_fake("hyperattn::attend")
def _(q: Tensor, k: Tensor, v: Tensor, *plan: Any) -> Attended:
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float64)


@torch.library.impl("hyperattn::attend_backward", "default")
def _attend_backward(*arguments: Any) -> Gradients:
    *tensors, data, weights, backend, settings, scale = arguments
    inputs, packed = BackwardInputs(*tensors), Packed(data, weights, Settings.from_list(settings))
    with outside_autocast(inputs.q.device.type):
        if data.numel() == 0:
            dq, dk, dv = exact_backward(inputs.map(torch.Tensor.contiguous), packed.settings.is_causal, scale)
            return dq.contiguous(), dk.contiguous(), dv.contiguous()
        return implementation(backend).backward(inputs, packed, scale)


@torch.library.register_fake("hyperattn::attend_backward")
def _(*arguments: Any) -> Gradients:
    q, k, v = arguments[2:5]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Attended) -> None:
    q, k, v, data, weights, *rest = inputs
    ctx.save_for_backward(q, k, v, *output, data, weights)
    ctx.rest = rest
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        grad_out = torch.zeros_like(ctx.saved_tensors[3])
    return (*_attend_gradient(grad_out, grad_lse, *ctx.saved_tensors, *ctx.rest), *[None] * 5)


def _refuse(ctx: Any, *grads: Tensor | None) -> None:
    # Without this PyTorch would warn, and go on as if the gradient were a constant.
    raise RuntimeError(
        "hyper_attention and exact_attention have no second derivative: they are once_differentiable; for short inputs "
        "backend='oracle' has one, and for exact attention PyTorch's SDPBackend.MATH"
    )


torch.library.register_autograd("hyperattn::attend", _backward, setup_context=_save)
torch.library.register_autograd("hyperattn::attend_backward", _refuse)


class _Transformed(torch.autograd.Function):
    """An operator under a transform of torch.func, or in forward mode, both of which need an autograd.Function."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        """Refuse forward mode."""
        raise RuntimeError(
            "hyper_attention and exact_attention have no forward-mode derivative (jvp, jacfwd, hessian): use reverse "
            "mode, torch.func.vjp or jacrev"
        )


class _Attend(_Transformed):
    forward = staticmethod(torch.ops.hyperattn.attend)
    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        """One call after another."""
        return _one_by_one(attend, info.batch_size, in_dims, arguments)


class _AttendBackward(_Transformed):
    forward = staticmethod(torch.ops.hyperattn.attend_backward)
    backward = staticmethod(_refuse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        """Keep nothing: there is no second derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        """One call after another."""
        return _one_by_one(_attend_gradient, info.batch_size, in_dims, arguments)


def _one_by_one(
    call: Callable[..., tuple[Tensor, ...]], count: int, in_dims: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Any, Any]:
    """A call per entry, so that each gives what it gives by itself, to the last bit; results stacked in front."""
    results = [
        call(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(arguments, in_dims, strict=True)))
        for i in range(count)
    ]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


for _operator in (torch.ops.hyperattn.plan, torch.ops.hyperattn.attend, torch.ops.hyperattn.attend_backward):
    torch.library.register_vmap(
        _operator.default,
        lambda info, in_dims, *arguments, call=_operator: _one_by_one(call, info.batch_size, in_dims, arguments),
    )


def _is_transformed() -> bool:
    """True under a transform of torch.func, or in forward mode, which need a Function; torch.compile takes none."""
    if torch.compiler.is_compiling():
        _refuse_in_graph()
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


@traced_as_constant
def _refuse_in_graph() -> None:
    """Refuse torch.func around a call within torch.compile: of its transforms a graph holds vmap alone."""
    if any(level.key() != TransformType.Vmap for level in retrieve_all_functorch_interpreters()):
        raise RuntimeError(
            "within torch.compile, hyper_attention and exact_attention take no derivative of torch.func: use "
            "torch.autograd.grad or backward() outside of the compiled function"
        )


def plan(q: Tensor, k: Tensor, seed: int, backend: str, settings: Settings, scale: float) -> Packed:
    """Hash, sort, pair and sample: a plan in a backend's layout; probes and routing ask for the logits' `scale`."""
    short = -(2**63) <= seed < 2**63
    seeds = (seed, "") if short else (0, str(seed))
    data, weights = torch.ops.hyperattn.plan(q.detach(), k.detach(), *seeds, backend, settings.to_list(), scale)
    return Packed(data, weights, settings)


def attend(*arguments: Any) -> Attended:
    """Output (B, H, Nq, Dv) in the dtype of q and log-sum-exp (B, H, Nq), differentiable; arguments of the operator.

    The log-sum-exp is in float64, as the backward pass needs it; a call gives it in the dtype of accumulation.
    """
    return (_Attend.apply if _is_transformed() else torch.ops.hyperattn.attend)(*arguments)


def _attend_gradient(*arguments: Any) -> Gradients:
    return (_AttendBackward.apply if _is_transformed() else torch.ops.hyperattn.attend_backward)(*arguments)
