"""Choice of the kernels' configurations: measured on the device once, then remembered."""

from __future__ import annotations

import functools
import os

import torch
import triton

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.packed import Settings
from hyperattn_core.triton_backend.forward import ForwardWork
from hyperattn_core.triton_backend.plan import packed_plan
from hyperattn_core.triton_backend.support import interpreted, traced_as_constant
from hyperattn_core.triton_backend.tuning.choice import Choice, cache_file, choose
from hyperattn_core.triton_backend.tuning.configs import (
    ARCHITECTURES,
    AttendConfig,
    BackwardConfig,
    default_backward_config,
    with_tile,
)

_INTERPRETED_TILE = 16
_TUNING_SHAPE = (1, 8, 16384)
_remembered: dict[tuple[int, torch.dtype, int], Choice] = {}


def attend_config(device: torch.device, dtype: torch.dtype, head_dim: int, tile_size: int) -> AttendConfig:
    """The configuration for a plan cut into tiles of tile_size; head_dim is the larger of D and Dv."""
    return with_tile(chosen(device, dtype, head_dim).config, tile_size)


def backward_config(device: torch.device, dtype: torch.dtype, head_dim: int) -> BackwardConfig:
    """The configuration of the backward kernels: the architecture's default."""
    if device.type != "cuda":
        return BackwardConfig(_INTERPRETED_TILE, 16, 16, 4, 1)
    return default_backward_config(architecture(_index(device)), dtype, head_dim)


@traced_as_constant
def default_tile_size(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    """The tile size of a plan that is made for the kernels."""
    return chosen(device, dtype, head_dim).config.tile_size


def chosen(device: torch.device, dtype: torch.dtype, head_dim: int) -> Choice:
    """The configuration for a device; the first call of a process with such inputs may measure.

    Nothing is measured while a CUDA graph is captured: that call takes what is known, or the default.
    """
    if device.type != "cuda":
        return Choice(AttendConfig(_INTERPRETED_TILE, 32, 4, 1), "default")
    index = _index(device)
    may_measure = os.environ.get("HYPERATTN_AUTOTUNE", "1") != "0" and not torch.cuda.is_current_stream_capturing()
    found = _remembered.get((index, dtype, head_dim))
    if found is None:
        found = choose(
            architecture(index), dtype, head_dim,
            device_name=torch.cuda.get_device_name(index), triton_version=triton.__version__,
            measure=functools.partial(_milliseconds, torch.device("cuda", index), dtype, head_dim)
            if may_measure and not interpreted() else None,
            cache=cache_file(),
        )  # fmt: skip
        if found.origin != "default" or may_measure:
            _remembered[(index, dtype, head_dim)] = found
    return found


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def architecture(index: int) -> int:
    """The entry of ARCHITECTURES that a GPU takes."""
    major, minor = torch.cuda.get_device_capability(index)
    return max((arch for arch in ARCHITECTURES if arch <= 10 * major + minor), default=ARCHITECTURES[0])


def describe() -> dict[str, str]:
    """The configurations that this process has taken, by dtype and head size, as text."""
    return {
        f"attend {str(dtype).removeprefix('torch.')} d={head_dim}": f"{choice.config} ({choice.origin})"
        for (_, dtype, head_dim), choice in _remembered.items()
    }


def _milliseconds(device: torch.device, dtype: torch.dtype, head_dim: int, config: AttendConfig) -> float:
    """Median time of the attend kernel alone at a middling length; infinity where it does not compile or fit."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(*_TUNING_SHAPE, head_dim, generator=generator, device=device, dtype=dtype) for _ in range(3))
    settings = Settings(HyperAttentionParams(), False, config.tile_size)
    try:
        with torch.cuda.device(device):
            work = ForwardWork(q, k, v, packed_plan(q, k, 0, settings, head_dim**-0.5), head_dim**-0.5, config)
            return float(triton.testing.do_bench(work.attend, warmup=10, rep=50, return_mode="median"))
    except (triton.runtime.errors.TritonError, triton.compiler.errors.CompilationError, torch.OutOfMemoryError):
        return float("inf")
