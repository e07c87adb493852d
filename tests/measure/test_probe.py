"""The probe: one JSON answer whatever the asked-about code prints or raises, and each problem in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyperattn_core import HyperAttentionParams
from hyperbench.measure.probe import main as probe
from hyperbench.measure.runner.prepare import ask_probe

HYPER = "hyperbench.measure.methods.hyper.hyper"


def examined(target: str, *hypers: dict[str, Any]) -> dict[str, Any]:
    """The findings of the probe about a method."""
    answer: dict[str, Any] = {"methods": {}, "missing": {}, "problems": []}
    probe._examine({"name": "mine", "target": target, "hypers": list(hypers)}, answer)
    return answer


def test_a_good_method_has_defaults_and_reasons() -> None:
    answer = examined(HYPER, {"block_size": 64, "sample_size": None}, {})
    assert answer["problems"] == []
    assert answer["methods"][HYPER]["defaults"]["block_size"] == HyperAttentionParams().block_size
    assert answer["methods"][HYPER]["unsupported"] == {"cpu": None, "cuda": None}
    cudnn = "hyperbench.measure.methods.exact.cudnn"
    assert examined(cudnn)["methods"][cudnn]["unsupported"]["cpu"]


@pytest.mark.parametrize(
    ("target", "hyper", "words"),
    [
        (
            "tests.helpers.raises_at_import.f",
            {},
            "method mine: _target_=tests.helpers.raises_at_import.f cannot be imported",
        ),
        (
            "tests.helpers.odd_methods.missing",
            {},
            "method mine: _target_=tests.helpers.odd_methods.missing cannot be imported",
        ),
        (
            "tests.helpers.odd_methods.exact",
            {"rank": 1},
            "method mine: tests.helpers.odd_methods.exact has no parameter 'rank'",
        ),
        (
            "tests.helpers.odd_methods.needs_a_value",
            {"rank": None},
            "method mine: tests.helpers.odd_methods.needs_a_value needs a value",
        ),
        (HYPER, {"sampling": "none"}, "method mine: sampling must be one of iid, stratified"),
    ],
)
def test_a_problem_is_one_line_with_the_name_of_the_method(target: str, hyper: dict[str, Any], words: str) -> None:
    answer = examined(target, hyper)
    (problem,) = [*answer["problems"], *answer["missing"].values()]
    assert problem.startswith(words)
    assert "\n" not in problem


def test_inputs_are_examined_too() -> None:
    problems = probe._input_problems(
        [{"family": "gaussian", "params": {"std": 1.0}}, {"family": "gaussian", "params": {"std": -1}}]
    )
    assert problems == ["input.std=-1 must be a number of at least 0"]


def test_facts_are_those_of_torch() -> None:
    facts = probe.facts()
    assert facts["torch"] == torch.__version__
    assert facts["cuda_available"] == torch.cuda.is_available()
    assert (facts["gpu_name"] is None) == (not facts["cuda_available"])


REPORT = """ATen/Parallel:
\tat::get_num_threads() : 4
\tat::get_num_interop_threads() : 2
OpenMP 201511 (a.k.a. OpenMP 4.5)
\tomp_get_max_threads() : 4
Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 1 for Intel(R) 64 architecture applications
\tmkl_get_max_threads() : 3
Intel(R) MKL-DNN v3.7.1 (Git Hash 8d26)
std::thread::hardware_concurrency() : 8
Environment variables:
\tOMP_NUM_THREADS : [not set]
ATen parallel backend: OpenMP
"""


def test_the_report_on_parallelism_is_told_in_short() -> None:
    assert probe.thread_pools(REPORT) == {
        "backend": "OpenMP", "intraop": "4", "interop": "2", "omp": "4", "mkl": "3", "mkl_version": "2024.2-Product",
        "onednn_version": "3.7.1",
    }  # fmt: skip
    assert probe.thread_pools("") == {}
    here = probe.facts()
    assert here["parallel"]["intraop"] == str(here["threads"])


def test_what_imported_code_prints_does_not_mix_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = (
        "tests.helpers.prints_at_import.exact",
        "tests.helpers.raises_at_import.f",
        "tests.helpers.exits_at_import.f",
        "tests.helpers.odd_methods.keyword_defaults",
    )
    request = {
        "methods": [{"name": target, "target": target, "hypers": [{}]} for target in targets],
        "inputs": [{"family": "gausian", "params": {}}],
        "measure_rate": True,
    }
    answer = ask_probe(request, {"OMP_NUM_THREADS": "1"})
    assert answer["torch"] == torch.__version__
    assert answer["threads"] == 1
    assert answer["flops_per_s"]["cpu"] > 0
    assert answer["start_s"] > 0
    assert set(answer["methods"]) == {
        "tests.helpers.prints_at_import.exact",
        "tests.helpers.odd_methods.keyword_defaults",
    }
    assert [problem.split(":")[0] for problem in answer["problems"]] == ["input=gausian is unknown; allowed"]
    assert [line.split(":")[0] for line in answer["missing"].values()] == [
        "method tests.helpers.raises_at_import.f",
        "method tests.helpers.exits_at_import.f",
    ]
