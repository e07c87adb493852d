"""Choice of the kernels' configurations: measured on the device once, then remembered."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

from hyperattn_core.exact_aten import BackwardInputs
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.packed import Settings
from hyperattn_core.triton_backend.backward import BackwardWork
from hyperattn_core.triton_backend.forward import ForwardWork
from hyperattn_core.triton_backend.plan import packed_plan
from hyperattn_core.triton_backend.support import interpreted, traced_as_constant
from hyperattn_core.triton_backend.tuning.choice import Choice, Trial, cache_file, choose
from hyperattn_core.triton_backend.tuning.configs import (
    ARCHITECTURES,
    AttendConfig,
    BackwardConfig,
    backward_candidates,
    candidates,
    with_tile,
)

_INTERPRETED_TILE = 16
_TUNING_SHAPE = (1, 8, 16384)
_LONGEST_REASON = 200
_remembered: dict[tuple[str, int, torch.dtype, int], Choice[Any]] = {}

Config = TypeVar("Config")
#: What is timed, and the buffers that it writes.
Work = tuple[Callable[[], object], tuple[Tensor, ...]]


def attend_config(device: torch.device, dtype: torch.dtype, head_dim: int, tile_size: int) -> AttendConfig:
    """The configuration for a plan cut into tiles of tile_size; head_dim is the larger of D and Dv."""
    return with_tile(chosen(device, dtype, head_dim).config, tile_size)


def backward_config(device: torch.device, dtype: torch.dtype, head_dim: int) -> BackwardConfig:
    """The configuration of the backward kernels, chosen as that of the attend kernel is."""
    if device.type != "cuda":
        return BackwardConfig(_INTERPRETED_TILE, 16, 16, 4, 1)
    return _choice("backward", device, dtype, head_dim, backward_candidates, _gradients).config


@traced_as_constant
def default_tile_size(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    """The tile size of a plan that is made for the kernels."""
    return chosen(device, dtype, head_dim).config.tile_size


def chosen(device: torch.device, dtype: torch.dtype, head_dim: int) -> Choice[AttendConfig]:
    """The configuration of the attend kernel for a device; the first call of a process with such inputs may measure."""
    if device.type != "cuda":
        return Choice(AttendConfig(_INTERPRETED_TILE, 32, 4, 1), "default")
    return _choice("attend", device, dtype, head_dim, candidates, _attended)


def _choice(
    kernel: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    options_of: Callable[[int, torch.dtype, int], Sequence[Config]],
    prepare: Callable[[torch.device, torch.dtype, int, Config], Work],
) -> Choice[Config]:
    """The choice for a kernel, remembered; what may not be measured takes what is known, or the default."""
    index = torch.cuda.current_device() if device.index is None else device.index
    key = (kernel, index, dtype, head_dim)
    if key not in _remembered:
        may_measure = _may_measure()
        device = torch.device("cuda", index)
        words = (kernel, torch.cuda.get_device_name(index), triton.__version__, str(dtype).removeprefix("torch."))
        found = choose(
            options_of(architecture(index), dtype, head_dim),
            "/".join((*words, str(head_dim))),
            trial=functools.partial(_tried, prepare, device, dtype, head_dim) if may_measure else None,
            cache=cache_file(),
        )
        if found.origin == "default" and not may_measure:
            return found
        _remembered[key] = found
    return _remembered[key]


def _may_measure() -> bool:
    """False where it is not wanted, while a CUDA graph is captured, and while something traces with fake tensors."""
    keys = torch._C._TorchDispatchModeKey
    return not (
        os.environ.get("HYPERATTN_AUTOTUNE", "1") == "0"
        or interpreted()
        or torch.cuda.is_current_stream_capturing()
        or any(torch._C._get_dispatch_mode(key) is not None for key in (keys.FAKE, keys.PROXY))
    )


def architecture(index: int) -> int:
    """The entry of ARCHITECTURES that a GPU takes."""
    major, minor = torch.cuda.get_device_capability(index)
    return max((arch for arch in ARCHITECTURES if arch <= 10 * major + minor), default=ARCHITECTURES[0])


def describe() -> dict[str, str]:
    """The configurations that this process has taken, by kernel, dtype and head size, as text."""
    return {
        f"{kernel} {str(dtype).removeprefix('torch.')} d={head_dim}": str(choice)
        for (kernel, _, dtype, head_dim), choice in _remembered.items()
    }


def _tried(
    prepare: Callable[[torch.device, torch.dtype, int, Config], Work],
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    config: Config,
) -> Trial | str:
    """Median time of a launch, and its results, or in a line why it does not compile, launch or fit.

    What a compiler and a driver raise for a configuration is of many kinds: errors of Triton, RuntimeError of a pass
    and of a launch, KeyError of an unknown option, lack of memory. Whatever it is, another configuration may run.
    """
    try:
        with torch.cuda.device(device):
            launch, outputs = prepare(device, dtype, head_dim, config)
            launch()
            kept = tuple(x.clone() for x in outputs)
            return Trial(float(triton.testing.do_bench(launch, warmup=10, rep=50, return_mode="median")), kept)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_REASON]


def _attended(device: torch.device, dtype: torch.dtype, head_dim: int, config: AttendConfig) -> Work:
    """The attend kernel alone at a middling length, and what it writes."""
    q, k, v = _inputs(device, dtype, head_dim, 3)
    scale, settings = head_dim**-0.5, Settings(HyperAttentionParams(), False, config.tile_size)
    work = ForwardWork(q, k, v, packed_plan(q, k, 0, settings, scale), scale, config)
    work.mean_keys()
    return work.attend, (work.out, work.lse)


def _gradients(device: torch.device, dtype: torch.dtype, head_dim: int, config: BackwardConfig) -> Work:
    """The kernels of the backward pass that have configurations, at a middling length, and what they write."""
    q, k, v, grad_out = _inputs(device, dtype, head_dim, 4)
    attend = chosen(device, dtype, head_dim).config
    scale, settings = head_dim**-0.5, Settings(HyperAttentionParams(), False, attend.tile_size)
    packed = packed_plan(q, k, 0, settings, scale)
    forward = ForwardWork(q, k, v, packed, scale, attend)
    forward.mean_keys()
    forward.attend()
    work = BackwardWork(BackwardInputs(grad_out, None, q, k, v, forward.out, forward.lse), packed, scale, config)
    work.delta()
    work.mean_keys()
    dq, dk, dv = (work.total(which) for which in range(3))

    def launch() -> None:
        work.samples()
        work.queries(0, dq)
        work.keys(0, dk, dv)

    return launch, (dq, dk, dv)


def _inputs(device: torch.device, dtype: torch.dtype, head_dim: int, count: int) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (*_TUNING_SHAPE, head_dim)
    return [torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(count)]
