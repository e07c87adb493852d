"""The check that `make gpu` begins with, in the interpreter: it finds nothing wrong, and names the launch that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperattn_core import HyperAttentionParams
from hyperattn_core.triton_backend.backward import BackwardWork
from hyperattn_core.triton_backend.forward import ForwardWork
from hyperattn_core.triton_backend.plan import PlanWork
from tools import gpu_check
from tools.gpu_check import METHODS, main, wrong_launches

SMALL = {"block_size": 16, "sample_size": 8, "num_projections": 4, "min_seq_len": 40}
PAPER, DEFAULT = (replace(METHODS[name], **SMALL) for name in ("hyper_paper", "hyper"))


@pytest.mark.parametrize("params", [PAPER, DEFAULT], ids=["paper", "default"])
def test_the_kernels_are_right(params: HyperAttentionParams) -> None:
    assert wrong_launches(params, 70, "cpu", is_causal=True) == []


#: Buffers of a pass, the launch after which they are changed, the change, under a mask or not, and what is said of it.
FAULTS: list[tuple[type, str, Callable[[Any], Any], bool, str]] = [
    (PlanWork, "hash", lambda work: work.ranks[:10].zero_(), False, "the order of queries"),
    (
        PlanWork,
        "sort",
        lambda work: work.packed.data[work.where.levels[0].key_order :][:9].zero_(),
        False,
        "no permutation: look at scan and scatter",
    ),
    (ForwardWork, "attend", lambda work: work.out[:, :, 9].neg_(), False, "look at attend"),
    (ForwardWork, "merge", lambda work: work.lse[:, :, :9].neg_(), True, "look at leaves or merge"),
    (BackwardWork, "delta", lambda work: work.deltas.add_(0.5), False, "look at delta, queries or leaves"),
    (BackwardWork, "samples", lambda work: work.sums[1].mul_(2.0), False, "look at samples, reduce or keys"),
]
#: Faults like others of these.
MUCH_ALIKE = ("attend", "delta")


@pytest.mark.parametrize(
    ("work", "launch", "change", "is_causal", "said"),
    [pytest.param(*fault, id=fault[1], marks=[pytest.mark.slow] * (fault[1] in MUCH_ALIKE)) for fault in FAULTS],
)
def test_a_wrong_launch_is_named(
    work: type, launch: str, change: Callable[[Any], None], is_causal: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(work, launch)

    def wrong(self: Any) -> None:
        right(self)
        change(self)

    monkeypatch.setattr(work, launch, wrong)
    found = wrong_launches(PAPER, 70, "cpu", is_causal=is_causal)
    assert any(said in line for line in found), found


def test_what_is_wrong_is_told_with_its_call_in_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu_check, "wrong_launches", lambda *args, is_causal: ["look at it"] if is_causal else [])
    assert main(["hyper", "--device=cpu", f"--out={tmp_path / 'said.txt'}"]) == 1
    told = capsys.readouterr().out
    assert told.splitlines()[:2] == [f"hyper, n = {n}, causal: look at it" for n in (61, 90)]
    assert (tmp_path / "said.txt").read_text() == told
