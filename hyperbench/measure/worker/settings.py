"""Settings of this process that every method shares: compared after each stretch of a method's code, and put back."""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F

from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.store.provenance import relevant_env

_MOST_TRIES = 3
Get = Callable[[], Any]
Put = Callable[[Any], object]
#: Attributes that stand for a setting, where this PyTorch has them.
_FLAGS: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (torch.backends, "torch.backends", ("fp32_precision",)),
    (torch.backends.cudnn, "torch.backends.cudnn", ("enabled", "benchmark", "deterministic", "fp32_precision")),
    (torch.backends.cuda.matmul, "torch.backends.cuda.matmul",
     ("fp32_precision", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")),
    (torch.backends.mkldnn, "torch.backends.mkldnn", ("enabled", "fp32_precision")),
    (getattr(torch.backends.mkldnn, "matmul", None), "torch.backends.mkldnn.matmul", ("fp32_precision",)),
)  # fmt: skip
_SDP_BACKENDS = ("flash", "mem_efficient", "math", "cudnn")
#: Functions that others call, or are timed by, and that must stay what they are.
_FUNCTIONS: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (F, "F", ("scaled_dot_product_attention", "softmax", "multi_head_attention_forward")),
    (torch, "torch", ("matmul", "bmm", "baddbmm", "einsum", "softmax", "empty", "empty_like", "zeros", "randn")),
    (torch.Tensor, "torch.Tensor", ("matmul", "__matmul__", "softmax", "backward")),
    (torch.autograd, "torch.autograd", ("grad", "backward")),
    (torch.cuda, "torch.cuda", ("synchronize", "current_stream", "Event")),
    (time, "time", ("perf_counter", "perf_counter_ns", "monotonic")),
)


class SettingsError(IncorrectError):
    """A method has changed settings of the process; `restored` is false if they could not be put back."""

    def __init__(self, changes: Mapping[str, tuple[Any, Any]], *, restored: bool) -> None:
        super().__init__(
            f"the method changed settings that all methods of the process share: {in_words(changes)}; "
            "with isolate: true it gets a process of its own"
        )
        self.restored = restored


class Settings:
    """The settings as they were when it was made, which they are to be whenever no method's code runs.

    Not with `isolated`: those of the one method in the process stay, and `own` tells them.
    """

    def __init__(self) -> None:
        self._standard = read()
        self._culprits: dict[str, SettingsError] = {}
        self.isolated = False

    @property
    def own(self) -> dict[str, str]:
        """The settings that are others than they were, as text; where no method is isolated there are none."""
        return {name: _shown(now) for name, (_, now) in self._changes().items()} if self.isolated else {}

    def restore(self) -> dict[str, tuple[Any, Any]]:
        """Put all back; returns what was changed: before and after, by name."""
        changes = left = self._changes()
        for _ in range(_MOST_TRIES):  # some settings change others
            if not left:
                break
            _put({name: old for name, (old, _) in left.items()})
            left = self._changes()
        return changes

    @contextmanager
    def kept(self, code: str = "") -> Iterator[None]:
        """Run a method's code; afterwards all is put back. Raises SettingsError if something had been changed.

        `code` names it: what has changed settings is not run again, for it may do so the first time alone.
        """
        if code in self._culprits:
            raise self._culprits[code].with_traceback(None)
        try:
            yield
        except Exception as error:
            self._check(code, error)
            raise
        self._check(code, None)

    @contextmanager
    def standard(self) -> Iterator[None]:
        """Run our own code under the settings as they were at first; those of an isolated method come back.

        What a function that makes inputs has changed meanwhile is put back, so that no method is blamed for it.
        """
        changes = self.restore()
        try:
            yield
        finally:
            self.restore()
            _put({name: new for name, (_, new) in changes.items()})

    def _check(self, code: str, cause: Exception | None) -> None:
        if not self.isolated and (changes := self.restore()):
            # It may be the reason for whatever else went wrong.
            error = SettingsError(changes, restored=not self._changes())
            if code:
                self._culprits[code] = error
            raise error from cause

    def _changes(self) -> dict[str, tuple[Any, Any]]:
        now = read()
        if now == self._standard:
            return {}
        return {name: (old, now[name]) for name, old in self._standard.items() if now[name] != old}


class KeepingClock:
    """A clock that looks at the settings after each call, when its time is taken; what else is read is the clock's."""

    def __init__(self, clock: Clock, settings: Settings) -> None:
        self._clock = clock
        self._settings = settings

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        """Time a call in milliseconds. Raises SettingsError if it has changed settings."""
        with self._settings.kept():
            return self._clock.time_ms(call, is_load=is_load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


def read() -> dict[str, Any]:
    """The settings of this process, by name."""
    return {name: _value(get) for name, (get, _) in _table().items()}


def _value(get: Get) -> Any:
    try:
        return get()
    except RuntimeError:  # PyTorch refuses to tell when old and new names of a setting contradict each other
        return "contradictory"


def _put(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        with suppress(Exception):  # whoever looks again sees what could not be put back
            _table()[name][1](value)


def in_words(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Changes as text: name (before, then after); functions that were replaced by their names alone."""
    return ", ".join(
        f"{name} (replaced)" if callable(old) else f"{name} ({_shown(old)} before, {_shown(new)} after)"
        for name, (old, new) in changes.items()
    )


def _shown(value: Any) -> str:
    return getattr(value, "__qualname__", None) or str(value)


@functools.cache
def _table() -> dict[str, tuple[Get, Put]]:
    """The functions that read a setting and put it back, by its name."""
    table: dict[str, tuple[Get, Put]] = {
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "interop_threads": (torch.get_num_interop_threads, torch.set_num_interop_threads),
        "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "grad_mode": (torch.is_grad_enabled, torch.set_grad_enabled),
        "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "default_device": (_default_device, torch.set_default_device),
        "deterministic_algorithms": (
            _deterministic,
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        ),
        "anomaly_detection": (
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda value: torch.autograd.set_detect_anomaly(*value),
        ),
        "garbage_collector": (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
        "environment": (lambda: relevant_env(os.environ), _put_environment),
    }
    for device in ("cpu", "cuda"):
        table[f"autocast_{device}"] = (
            functools.partial(torch.is_autocast_enabled, device), functools.partial(torch.set_autocast_enabled, device)
        )  # fmt: skip
    for name in _SDP_BACKENDS:
        get, put = (getattr(torch.backends.cuda, text, None) for text in (f"{name}_sdp_enabled", f"enable_{name}_sdp"))
        if get is not None and put is not None:
            table[f"{name}_sdp"] = (get, put)
    if hasattr(os, "sched_getaffinity"):
        table["affinity"] = (lambda: os.sched_getaffinity(0), lambda value: os.sched_setaffinity(0, value))
    for owner, where, names in (*_FLAGS, *_FUNCTIONS):
        for name in names:
            if hasattr(owner, name):
                table[f"{where}.{name}"] = (
                    functools.partial(getattr, owner, name, None), functools.partial(setattr, owner, name)
                )  # fmt: skip
    return table


def _default_device() -> str | None:
    # Not get_default_device: a device that was set, even the CPU, makes every call of PyTorch slower.
    context = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
    return None if context is None else str(context.device)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _put_environment(value: Mapping[str, str]) -> None:
    for name in relevant_env(os.environ).keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)
