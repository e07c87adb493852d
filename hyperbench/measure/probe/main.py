"""Probe: a short process that answers what only torch can tell: devices, versions, and whether methods can be imported.

Reads one JSON request from stdin and answers with one JSON object on stdout; started by hyperbench/child/start.py.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import replace
from typing import Any

from hyperbench.child.code import admit_current_folder, running_code
from hyperbench.config.inputs import target_of
from hyperbench.store.schema import Point

_RATE_SEQ_LEN = 2048
_RATE_HEAD_DIM = 64
_RATE_CALLS = 3
#: Patterns of what PyTorch's report on its parallelism says.
_PARALLEL = {
    "backend": r"parallel backend: (\S+)",
    "intraop": r"get_num_threads\(\) : (\d+)",
    "interop": r"get_num_interop_threads\(\) : (\d+)",
    "omp": r"omp_get_max_threads\(\) : (\d+)",
    "mkl": r"mkl_get_max_threads\(\) : (\d+)",
    "mkl_version": r"Math Kernel Library Version (\S+)",
    "onednn_version": r"MKL-DNN v(\S+)",
}


def main() -> None:
    """Answer the request on stdin."""
    # What imported code prints must not mix with the answer.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    targets = [item["target"] for item in request["methods"]]
    targets += [name for item in request["inputs"] if (name := target_of(item["params"]))]
    targets += request.get("tasks", [])
    admit_current_folder(targets)
    code = running_code(targets)
    start_s = time.perf_counter()
    answer = {**facts(), "methods": {}, "missing": {}, "problems": [], "code": code.fingerprint, "files": code.files}
    answer["start_s"] = time.perf_counter() - start_s
    for item in request["methods"]:
        _examine(item, answer)
    answer["problems"] += _input_problems(request["inputs"])
    if request.get("measure_rate"):
        answer["flops_per_s"] = {device: attention_rate(device) for device in _devices(answer)}
    if request.get("diagnose"):
        from hyperbench.measure.probe.diagnose import timer_facts

        answer["timer"] = timer_facts(_devices(answer)[-1])
    if request.get("triton"):
        answer["triton_backend"] = why_no_triton(answer["cuda_available"])
    if request.get("noise"):
        from hyperbench.measure.probe.diagnose import noise_facts

        answer["noise"] = noise_facts(request["noise"]["device"], full=request["noise"]["full"])
    with os.fdopen(answer_fd, "w") as out:
        json.dump(answer, out)


def facts() -> dict[str, Any]:
    """Facts that torch tells of itself and the devices."""
    import torch

    cuda = torch.cuda.is_available()
    cudnn = torch.backends.cudnn.version() if cuda else None
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "cuda_available": cuda,
        "gpu_name": torch.cuda.get_device_name(0) if cuda else None,
        "gpu_count": torch.cuda.device_count() if cuda else 0,
        "gpu_uuid": _gpu_uuid() if cuda else None,
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "cuda_bfloat16": torch.cuda.is_bf16_supported() if cuda else False,
        "threads": torch.get_num_threads(),
        "parallel": thread_pools(torch.__config__.parallel_info()),
        "kernels": kernels() if cuda else None,
    }
    return found


def thread_pools(info: str) -> dict[str, str]:
    """PyTorch's report on its parallelism in short: threads of each library, their versions, the backend."""
    found = {name: re.search(pattern, info) for name, pattern in _PARALLEL.items()}
    return {name: match.group(1) for name, match in found.items() if match is not None}


def _gpu_uuid() -> str | None:
    """The id of the GPU itself, whatever number it has here; None where PyTorch is too old to tell."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return None if uuid is None else str(uuid)


def kernels() -> dict[str, str] | None:
    """The settings of HyperAttention's Triton kernels on this GPU, or why they cannot be told; None without kernels."""
    from hyperattn_core.backends import kernel_settings

    try:
        return kernel_settings() or None
    except Exception as error:  # a compiler that is missing, say; the points that need it will tell as well
        return {"error": " ".join(str(error).split()) or type(error).__name__}


def why_no_triton(cuda_available: bool) -> str | None:
    """The reason why HyperAttention's Triton kernels cannot run at the paper's shape and dtype; None if they can."""
    import torch

    from hyperattn_core import HyperAttentionParams
    from hyperattn_core.backends import backend_for

    if not cuda_available:
        return "PyTorch sees no CUDA GPU here"
    name, reason = backend_for("cuda", torch.bfloat16, _RATE_HEAD_DIM, _RATE_HEAD_DIM, HyperAttentionParams())
    return None if name == "triton" else reason


def attention_rate(device: str) -> float:
    """Operations per second of exact attention on a small problem: the base of the estimate of a run's time."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    heads = 16 if device == "cuda" else 1
    x = torch.randn(1, heads, _RATE_SEQ_LEN, _RATE_HEAD_DIM, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_RATE_CALLS):
        start = time.perf_counter()
        scaled_dot_product_attention(x, x, x)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 4.0 * heads * _RATE_SEQ_LEN**2 * _RATE_HEAD_DIM / best


def _devices(answer: dict[str, Any]) -> list[str]:
    return ["cpu", "cuda"] if answer["cuda_available"] else ["cpu"]


def _examine(item: dict[str, Any], answer: dict[str, Any]) -> None:
    """Add a method's defaults and why it cannot run where, that it is missing, or a problem with it, to the answer."""
    from hyperbench.measure.methods import method as registry

    target = item["target"]
    try:
        method = registry.find(target)
    except ValueError as error:
        answer["missing"][target] = f"method {item['name']}: {' '.join(str(error).split())}"
        return
    try:
        defaults = method.defaults()
        for hyper in item["hypers"]:
            filled = {name: defaults.get(name) if value is None else value for name, value in hyper.items()}
            method.check({name: value for name, value in filled.items() if value is not None})
        answer["methods"][target] = {
            "defaults": defaults,
            "unsupported": {
                device: method.why_unsupported(device, "bfloat16" if device == "cuda" else "float32")
                for device in ("cpu", "cuda")
            },
        }
    except ValueError as error:
        answer["problems"].append(f"method {item['name']}: {' '.join(str(error).split())}")


def _input_problems(inputs: list[dict[str, Any]]) -> list[str]:
    from hyperbench.measure.inputs import check_params, make_inputs

    problems = []
    for item in inputs:
        try:
            check_params(item["family"], item["params"])
            if "point" in item:
                make_inputs(replace(Point.from_dict(item["point"]), device="cpu"))
        except ValueError as error:
            problems.append(" ".join(str(error).split()))
        except Exception as error:  # of the code of others
            problems.append(f"input {item['family']}: {type(error).__name__}: {' '.join(str(error).split())}")
    return problems


if __name__ == "__main__":
    main()
