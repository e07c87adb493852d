"""Predicted times: the longest bound of each launch, and the targets on paper."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from hyperattn_core import HyperAttentionParams
from tools.roofline import times
from tools.roofline.call_sizes import CallSizes
from tools.roofline.launches import backward_costs, forward_costs
from tools.roofline.times import CARDS, Code, flash_seconds, main, predicted

SHAPE = (1, 12, 12, 131072, 131072)


def call(is_causal: bool) -> CallSizes:
    """The paper's sizes with the library's default estimator."""
    return CallSizes(SHAPE, 64, is_causal=is_causal, params=HyperAttentionParams())


@pytest.mark.parametrize("is_causal", [False, True])
def test_without_instructions_times_are_those_of_bytes_and_products(
    is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times, "_compiled", lambda *_: {})
    for card in CARDS:
        for launches, costs in zip(
            predicted(call(is_causal), card), (f(call(is_causal)) for f in (forward_costs, backward_costs)), strict=True
        ):
            assert [launch.name for launch in launches] == [cost.name for cost in costs]
            for launch in launches:
                assert launch.issue_s == 0.0
                assert launch.seconds > max(launch.memory_s, launch.products_s)


def test_instructions_are_those_of_every_warp_of_every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "_compiled", lambda *_: {"hash": Code(100, 10, 4)})
    (first, *_), _ = predicted(call(False), CARDS[0])
    programs = 12 * 131072 / 128 / times.HASH_TILES  # queries: probed keys are hashed by another launch
    slots = 4 * 108 * 1.41e9 * 0.78
    assert first.issue_s == pytest.approx(programs * (100 + 10 * times.HASH_TILES) * 4 / slots)


def test_exact_attention_at_its_published_rates() -> None:
    """275 and 163 ms forward, without a mask; half of the operations with one."""
    assert [1e3 * flash_seconds(call(False), card)[0] for card in CARDS] == pytest.approx([275, 163], abs=0.5)
    assert [1e3 * flash_seconds(call(True), card)[0] for card in CARDS] == pytest.approx([154, 88], abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "forward", "both"), [((), 150, 150), (("--causal", "--min-seq-len", "1024"), 20, 18)]
)
def test_targets_on_paper(words: tuple[str, ...], forward: float, both: float) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tools.roofline.times", *words], capture_output=True, text=True, check=True
    )
    speedups = [float(found) for found in re.findall(r"FlashAttention-2 [\d.]+: ([\d.]+)x", finished.stdout)[::2]]
    together = [float(found) for found in re.findall(r"both passes: .*: ([\d.]+)x", finished.stdout)]
    assert len(speedups) == len(together) == len(CARDS)
    assert min(speedups) >= forward
    assert min(together) >= both


def test_the_table_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(times, "_compiled", lambda *_: {})
    monkeypatch.setattr(times, "interpreted", lambda: False)
    assert main(["--seq-len", "8192", "--causal"]) == 0
    table = capsys.readouterr().out
    assert "nothing was measured" in table
    assert table.count("FlashAttention-2") == 4
