"""Which backend of HyperAttention a table, the doctor and environment.json name, on a GPU that is only pretended."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
import triton
from rich.console import Console

import hyperattn_core.backends
from hyperattn_core import HyperAttentionParams
from hyperbench.commands import doctor
from hyperbench.measure.methods import hyper as methods
from hyperbench.measure.methods import method
from hyperbench.measure.probe import main as probe
from hyperbench.store import environment
from tests.helpers.made_records import a_point

HYPER = method.find("hyperbench.measure.methods.hyper.hyper")
PARAMS = dataclasses.asdict(HyperAttentionParams())
REASON = "the Triton kernels take float16, bfloat16, float32, got float64"


def point(device: str, dtype: str = "bfloat16", **hyper: Any) -> Any:
    """A point of hyper with all its parameters."""
    return a_point(device=device, dtype=dtype, hyper={**PARAMS, "seed": 0, **hyper})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the library is asked; it answers as with a GPU, whose kernels take all but float64."""
    found: list[tuple[Any, ...]] = []

    def answer(device: str, dtype: torch.dtype, *rest: Any) -> tuple[str, str]:
        found.append((device, dtype, *rest))
        if device != "cuda":
            return "torch", ""
        return ("torch", REASON) if dtype == torch.float64 else ("triton", "")

    monkeypatch.setattr(methods, "backend_for", answer)
    return found


def test_the_implementation_names_the_backend_that_runs_at_the_point(asked: list[tuple[Any, ...]]) -> None:
    torch_version = torch.__version__.partition("+")[0]
    for where, name in (
        (point("cuda"), f"-triton-{triton.__version__.partition('+')[0]}-cuda"),
        (point("cuda", "float64"), f"-torch-{torch_version}-cuda"),
        (point("cpu", "float32"), f"-torch-{torch_version}-cpu"),
    ):
        found = HYPER.implementation(where.device, where)
        assert found.startswith("hyperattn-core-")
        assert found.endswith(name)
    HYPER.implementation("cuda", point("cuda", block_size=48))
    assert asked[-1] == ("cuda", torch.bfloat16, 64, 64, HyperAttentionParams(block_size=48))
    assert "-triton-" in HYPER.implementation("cuda")


@pytest.mark.usefixtures("asked")
def test_a_fallback_on_a_gpu_is_told_with_its_reason_and_nothing_else_is() -> None:
    assert REASON in HYPER.note(point("cuda", "float64"))
    assert HYPER.note(point("cuda")) == HYPER.note(point("cpu", "float64")) == ""
    assert method.find("hyperbench.measure.methods.exact.flash2").note(point("cuda")) == ""


def test_the_doctor_says_whether_the_kernels_run_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.why_no_triton(cuda_available=False) == "PyTorch sees no CUDA GPU here"
    monkeypatch.setattr(hyperattn_core.backends, "backend_for", lambda *_: ("triton", ""))
    assert probe.why_no_triton(cuda_available=True) is None
    monkeypatch.setattr(hyperattn_core.backends, "backend_for", lambda *_: ("torch", "Triton does not import"))
    assert probe.why_no_triton(cuda_available=True) == "Triton does not import"


@pytest.mark.parametrize(
    ("kernels", "said"),
    [({"runs": True, "reason": None}, "run here"), ({"runs": False, "reason": "no GPU"}, "cannot run here: no GPU")],
)
def test_the_report_has_a_line_on_the_kernels(kernels: dict[str, Any], said: str) -> None:
    report = {
        "environment": {}, "device": "cpu", "methods": {}, "triton_backend": kernels, "problems": [],
        "timer": {"resolution_ns": 1, "pairs": 1, "floor": 0.0, "flush_ratio": None},
        "attention_flops_per_s": {"cpu": 1e9}, "noise": {"aa_floor": 0.01, "processes": 4, "not_kept": ""}, "busy": "",
    }  # fmt: skip
    text = io.StringIO()
    doctor.print_report(report, Console(file=text, width=120))
    assert f"Triton kernels of HyperAttention\n{said}\n" in text.getvalue()


def test_the_settings_of_the_kernels_are_part_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"triton": "3.6.0", "attend bfloat16 d=64": "64x64, 4 warps (tuned)"}
    monkeypatch.setattr(hyperattn_core.backends, "kernel_settings", lambda: settings)
    assert probe.kernels() == settings
    checked = environment.checked({"kernels": settings})
    assert environment.shown(checked)["kernels"] == "triton=3.6.0 attend bfloat16 d=64=64x64, 4 warps (tuned)"
    monkeypatch.setattr(hyperattn_core.backends, "kernel_settings", dict)
    assert probe.kernels() is None


def test_kernels_that_do_not_compile_do_not_keep_the_probe_from_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> dict[str, str]:
        raise RuntimeError("Failed to find\na C compiler")

    monkeypatch.setattr(hyperattn_core.backends, "kernel_settings", fails)
    assert probe.kernels() == {"error": "Failed to find a C compiler"}
