"""The most operations per second that a few GPUs can do: a rate above is a sign that not all of the work was timed."""

from __future__ import annotations

_TERA = 1e12
#: Dense matrix products, in TFLOP/s, from the makers' data sheets: part of the GPU's name, bfloat16 and float16,
#: float32 (with TF32 where there is such a unit). The first match counts: special names of a family come first.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 1125.0),
    ("GH200", 990.0, 495.0),
    ("H200", 990.0, 495.0),
    ("H100 PCIe", 757.0, 379.0),
    ("H100 NVL", 836.0, 418.0),
    ("H100", 990.0, 495.0),
    ("A100", 312.0, 156.0),
    ("A10G", 125.0, 70.0),
    ("A10", 125.0, 62.5),
    ("L40S", 363.0, 183.0),
    ("L4", 121.0, 60.0),
    ("RTX 4090", 331.0, 83.0),
    ("RTX 3090", 143.0, 71.5),
    ("V100", 125.0, 15.7),
    ("T4", 65.0, 8.2),
)
#: What a clock may gain over the data sheet's.
_MARGIN = 1.1


def peak_flops_per_s(device_name: str | None, dtype: str) -> float | None:
    """The peak rate of a GPU by its name, a tenth added for higher clocks; None where it is not known, as for CPUs.

    Of float64 nothing is known here.
    """
    words = (device_name or "").replace("-", " ").split()
    for name, half, single in _PEAKS:
        parts = name.split()
        if any(words[i : i + len(parts)] == parts for i in range(len(words))):
            peak = {"bfloat16": half, "float16": half, "float32": single}.get(dtype)
            return None if peak is None else peak * _TERA * _MARGIN
    return None


def above_peak_note(flops: float | None, median_ms: float, peak: float | None) -> str:
    """In a line, how much more than the device can do it would have done; for a rate that is above the peak."""
    assert flops is not None
    assert peak is not None
    rate = flops / median_ms * 1e3 if median_ms > 0 else float("inf")
    return f"{rate / _TERA:,.4g} TFLOP/s of executed operations, and the device can do {peak / _TERA:,.4g} at most"


def is_above_peak(flops: float | None, median_ms: float, peak: float | None) -> bool:
    """Whether so many operations in such a time are more than the device can do."""
    return flops is not None and peak is not None and flops > peak * median_ms / 1e3
