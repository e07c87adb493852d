"""Bad input is refused by both backends alike; a Triton that is missing, a command that reports a failure."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan
from hyperattn_core.triton_backend import support
from tests.helpers.triton_inputs import Call
from tools.kernels import table as aot
from tools.kernels.table import SHARED_LIMIT, Usage

CALL = Call(queries=20, params={"min_seq_len": 5, "block_size": 4, "sample_size": 3})


@pytest.mark.parametrize(
    "wrong", [{"scale": math.nan}, {"seed": 0.5}, {"params": {"block_size": 3}}, {"plan": "mine"}], ids=str
)
def test_arguments_are_refused_as_in_pytorch(wrong: dict[str, Any]) -> None:
    q, k, v = CALL.inputs()
    messages = []
    for backend in ("triton", "torch"):
        with pytest.raises(ValueError) as refusal:
            hyper_attention(q, k, v, backend=backend, **wrong)
        messages.append(str(refusal.value))
    assert messages[0] == messages[1]
    assert next(iter(wrong)) in messages[0]


def test_tensors_that_do_not_fit_together_are_refused_as_in_pytorch() -> None:
    q, k, v = CALL.inputs()
    for tensors in ((q, k[:, :, :5], v), (q, k.double(), v), (q[..., :7], k, v), (q.expand(-1, 3, -1, -1), k, v)):
        messages = []
        for backend in ("triton", "torch"):
            with pytest.raises(ValueError) as refusal:
                hyper_attention(*tensors, backend=backend)
            messages.append(str(refusal.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_plan_of_another_mask_or_other_parameters(is_causal: bool) -> None:
    q, k, v = CALL.inputs()
    plan = make_plan(q, k, CALL.parameters(), is_causal=is_causal, backend="triton")
    with pytest.raises(ValueError, match="plan was made for is_causal"):
        hyper_attention(q, k, v, plan=plan, is_causal=not is_causal, backend="triton")
    with pytest.raises(ValueError, match="pass one of the two"):
        hyper_attention(q, k, v, plan=plan, params=HyperAttentionParams(), is_causal=is_causal, backend="triton")


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton is not installed, and nobody has asked yet whether it is."""
    monkeypatch.setitem(sys.modules, "triton", None)
    support.import_error.cache_clear()
    yield
    support.import_error.cache_clear()


@pytest.mark.usefixtures("no_triton")
def test_without_triton_the_kernels_are_refused_and_auto_goes_on() -> None:
    q, k, v = CALL.inputs()
    for call in (lambda: hyper_attention(q, k, v, backend="triton"), lambda: make_plan(q, k, backend="triton")):
        with pytest.raises(RuntimeError, match=r"^Triton does not import \(.*\); use backend='torch'"):
            call()
    assert hyper_attention(q, k, v, params=CALL.parameters()).shape == q.shape


def test_no_queries_at_all() -> None:
    q, k, v = CALL.inputs()
    assert hyper_attention(q[:, :, :0], k, v, params=CALL.parameters(), backend="triton").shape == (1, 1, 0, 16)


@pytest.mark.parametrize(
    ("spill_bytes", "shared_bytes", "code"), [(0, 40_000, 0), (8, 40_000, 1), (0, SHARED_LIMIT[80] + 1, 1)]
)
def test_the_exit_code_says_whether_every_kernel_fits(
    spill_bytes: int, shared_bytes: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = Usage("attend", "bf16 d=64", 80, 4, 3, 168, spill_bytes, shared_bytes, ("mma.sync",), 360)
    monkeypatch.setattr(aot, "interpreted", lambda: False)
    monkeypatch.setattr(aot, "builds", lambda *_, **__: [None])
    monkeypatch.setattr(aot, "compile_build", lambda *_: usage)
    assert aot.main(["--arch", "80"]) == code
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert {"sm_80", "attend", str(spill_bytes), str(shared_bytes), "mma.sync"} <= set(row)


def test_no_arguments_are_those_of_the_command_and_not_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], env: dict[str, str]) -> Any:
        asked.append(command)
        assert env["TRITON_INTERPRET"] == "0"
        return type("Finished", (), {"returncode": 0})

    monkeypatch.setattr(aot, "interpreted", lambda: True)
    monkeypatch.setattr(aot.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["another program", "--its", "words"])
    assert aot.main([]) == 0
    assert asked[0][-1] == "tools.kernels.table"
