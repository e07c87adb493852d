"""Rules of the claims: each verdict follows from the intervals, and what is not comparable is not judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from hyperbench.analyze.claims.findings import Number, Verdict, worst
from hyperbench.analyze.claims.published import Claim, load_claims
from hyperbench.analyze.claims.rules import rule_of
from hyperbench.analyze.view import View
from tests.helpers.synthetic_runs import GPU_LENGTHS, grid, view_from

HOLDS, FAILS, OPEN = Verdict.HOLDS, Verdict.FAILS, Verdict.OPEN
SETTING: dict[str, Any] = {
    "seq_len": 131_072, "is_causal": False, "heads": 1, "head_dim": 64, "block_size": 256, "sample_size": 256,
    "pass": ["forward", "forward_backward"], "device": "one NVIDIA A100 40 GB",
}  # fmt: skip
RANGE = {**SETTING, "seq_len": list(GPU_LENGTHS)}
del RANGE["is_causal"]


def a_claim(check: dict[str, Any], value: float | None = None, **setting: Any) -> Claim:
    """A claim in the setting of the paper's figure."""
    return Claim("mine", "a claim", {**SETTING, **setting}, "speedup", value, "somebody", False, check)


def judged(claim: Claim, view: View) -> tuple[Verdict, str, tuple[Number, ...]]:
    """The verdict of the rule that the claim names, the reason, and the numbers."""
    finding = rule_of(claim).judge(claim, view)
    return finding.verdict, finding.reason, finding.numbers


@pytest.fixture(scope="module")
def cpu() -> View:
    """A run of a CPU over the paper's grid."""
    return view_from(grid(GPU_LENGTHS))


def changed(view: View, **columns: Any) -> View:
    """A run with other columns; a function makes one of the table."""
    return dataclasses.replace(view, timings=view.timings.assign(**columns))


def test_a_speedup_is_held_against_the_published_one_by_its_whole_interval(cpu: View) -> None:
    _, _, numbers = judged(a_claim({"rule": "speedup_at_least"}, 1.0), cpu)
    assert [number.label for number in numbers] == ["forward", "forward+backward"]
    least = min(numbers, key=lambda number: number.value)
    assert least.low < least.value < least.high
    for value, verdict in ((0.9 * least.low, HOLDS), (least.value, OPEN), (1.1 * least.high, FAILS)):
        assert judged(a_claim({"rule": "speedup_at_least"}, value), cpu)[0] is verdict
    assert "too few rounds" in judged(a_claim({"rule": "speedup_at_least"}, least.value), cpu)[1]
    # A value that was read from a plot may be off itself.
    off = a_claim({"rule": "speedup_at_least", "tolerance": 0.5}, 1.1 * least.high)
    assert judged(off, cpu)[0] is HOLDS


def test_the_numbers_are_those_of_the_tables(cpu: View) -> None:
    rows = cpu.timings.query("method == 'hyper' and seq_len == 131072 and not is_causal and `pass` == 'forward'")
    _, _, (number, _) = judged(a_claim({"rule": "speedup_at_least"}, 1.0), cpu)
    assert [number.value, number.low, number.high] == list(rows[["speedup", "speedup_low", "speedup_high"]].iloc[0])


@pytest.mark.parametrize(
    ("machine", "verdict"),
    [("NVIDIA A100-SXM4-40GB", HOLDS), ("NVIDIA A10", OPEN), ("NVIDIA H200", OPEN), ("NVIDIA A1000", OPEN)],
)
def test_a_number_of_a_gpu_is_held_against_that_gpu_alone(cpu: View, machine: str, verdict: Verdict) -> None:
    claim = a_claim({"rule": "speedup_at_least", "hardware": "A100"}, 1.0)
    gpu = dataclasses.replace(changed(cpu, device="cuda"), environment={"machine": machine})
    found, reason, numbers = judged(claim, gpu)
    assert found is verdict
    assert ("another GPU" in reason) == (verdict is OPEN)
    assert len(numbers) == 2, "the number stands beside it for orientation"


def test_a_number_of_a_gpu_is_not_held_against_a_cpu(cpu: View) -> None:
    verdict, reason, numbers = judged(a_claim({"rule": "speedup_at_least", "hardware": "A100"}, 1e9), cpu)
    assert (verdict, len(numbers)) == (OPEN, 2)
    assert "needs CUDA" in reason
    assert "a CPU" in reason


@pytest.mark.parametrize("setting", [{"seq_len": 100_000}, {"block_size": 128}, {"head_dim": 128}, {"pass": "other"}])
def test_another_setting_is_not_judged(cpu: View, setting: dict[str, Any]) -> None:
    assert judged(a_claim({"rule": "speedup_at_least"}, 1.0, **setting), cpu)[::2] == (OPEN, ())


def test_what_else_differs_from_the_setting_is_told(cpu: View) -> None:
    claim = a_claim({"rule": "speedup_at_least"}, 1.0, heads=12, dtype="bfloat16", min_seq_len=4096)
    verdict, reason, _ = judged(claim, cpu)
    assert verdict is HOLDS
    for told in ("heads (1 here, 12 there)", "dtype (float32 here, bfloat16 there)", "min_seq_len (1024 here"):
        assert told in reason


def test_the_row_that_is_nearest_to_the_setting_is_taken(cpu: View) -> None:
    """The method with the paper's leaves, though the other one is faster."""
    own = cpu.timings[cpu.timings["method"] == "hyper"]
    paper = own.assign(method="hyper_paper", min_seq_len=4096, speedup=own["speedup"] / 2)
    view = dataclasses.replace(cpu, timings=pd.concat([cpu.timings, paper]))
    rows = paper.query("seq_len == 131072 and not is_causal and `pass` == 'forward'")
    _, _, (number, _) = judged(a_claim({"rule": "speedup_at_least"}, 1.0, min_seq_len=4096), view)
    assert number.value == rows["speedup"].iloc[0]


def test_a_number_of_protocol_paper_is_no_result(cpu: View) -> None:
    for rule in ("speedup_at_least", "speedup_grows"):
        assert judged(a_claim({"rule": rule}, 1.0), changed(cpu, protocol="paper"))[0] is OPEN


def test_speedups_that_grow_do_so_for_every_pass_and_mask(cpu: View) -> None:
    claim = dataclasses.replace(a_claim({"rule": "speedup_grows"}), setting=RANGE)
    verdict, _, numbers = judged(claim, cpu)
    assert verdict is HOLDS
    assert len(numbers) == 4
    assert all(number.low > 0.0 for number in numbers)


def test_one_clear_step_down_is_no_growth(cpu: View) -> None:
    def lost(of: str) -> Callable[[pd.DataFrame], pd.Series[float]]:
        return lambda frame: frame[of] / (1.0 + 9.0 * (frame["is_causal"] & (frame["seq_len"] == GPU_LENGTHS[-1])))

    claim = dataclasses.replace(a_claim({"rule": "speedup_grows"}), setting=RANGE)
    slow = changed(cpu, **{name: lost(name) for name in ("speedup", "speedup_low", "speedup_high")})
    verdict, reason, _ = judged(claim, slow)
    assert verdict is FAILS
    assert "forward with causal masking: from" in reason
    assert "without causal masking" not in reason


def test_two_lengths_are_no_growth_yet(cpu: View) -> None:
    claim = dataclasses.replace(a_claim({"rule": "speedup_grows"}), setting={**RANGE, "seq_len": [4096, 8192]})
    verdict, reason, numbers = judged(claim, cpu)
    assert (verdict, numbers) == (OPEN, ())
    assert "n = 4,096 to 8,192" in reason


def alphas(view: View, power: float, input_: str = "smollm2") -> View:
    """A run that measured alpha on one input."""
    return changed(view, input=input_, alpha=lambda frame: 0.1 * frame["seq_len"] ** power)


ALPHA = {"rule": "grows_sublinearly", "metric": "alpha", "inputs": ["smollm2"]}


@pytest.mark.parametrize(("power", "verdict"), [(0.5, HOLDS), (-0.2, HOLDS), (1.3, FAILS)])
def test_alpha_grows_more_slowly_than_n_or_not(cpu: View, power: float, verdict: Verdict) -> None:
    found, _, numbers = judged(a_claim(ALPHA), alphas(cpu, power))
    assert found is verdict
    assert [number.value for number in numbers] == pytest.approx([power, power])
    assert "smollm2, without causal masking, n = 4,096 to 131,072" in numbers[0].label


def test_each_layer_has_its_alpha(cpu: View) -> None:
    """One layer on which it grows faster decides."""
    first, second = alphas(cpu, 0.5), alphas(cpu, 1.5)
    frames = [view.timings.assign(**{"input.layer": layer}) for layer, view in ((0, first), (8, second))]
    verdict, _, numbers = judged(a_claim(ALPHA), dataclasses.replace(cpu, timings=pd.concat(frames)))
    assert verdict is FAILS
    assert [number.above(1.0) is HOLDS for number in numbers] == ["layer 8" in number.label for number in numbers]
    assert len(numbers) == 4


def test_alpha_of_made_up_inputs_is_for_orientation(cpu: View) -> None:
    verdict, reason, numbers = judged(a_claim(ALPHA), alphas(cpu, 0.5, "gaussian"))
    assert (verdict, len(numbers)) == (OPEN, 2)
    assert "inputs of models (smollm2); this run has gaussian" in reason


def test_without_enough_alphas_there_is_no_verdict(cpu: View) -> None:
    two = alphas(dataclasses.replace(cpu, timings=cpu.timings[cpu.timings["seq_len"] < 10_000]), 0.5)
    for view, told in ((two, "fewer than 3 lengths"), (cpu, "error.extra=[theory]")):
        verdict, reason, numbers = judged(a_claim(ALPHA), view)
        assert (verdict, numbers) == (OPEN, ())
        assert told in reason


def test_a_claim_of_several_parts_holds_if_all_do() -> None:
    assert worst([HOLDS, HOLDS]) is HOLDS
    assert worst([HOLDS, OPEN]) is OPEN
    assert worst([OPEN, FAILS, HOLDS]) is FAILS


def test_every_claim_names_a_rule_that_takes_its_parameters() -> None:
    assert all(rule_of(claim) for claim in load_claims())


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ({"rule": "speedup_atleast"}, "did you mean 'speedup_at_least'?"),
        ({}, "check.rule=None is unknown"),
        ({"rule": "speedup_at_least", "hardwear": "A100"}, "unknown key 'hardwear'"),
        ({"rule": "speedup_at_least", "hardware": 100}, "Expected `str`, got `int`"),
        ({"rule": "grows_sublinearly", "metric": "alpha"}, "inputs"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused_in_one_line(check: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="claim mine: check") as refused:
        rule_of(a_claim(check, 1.0))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_speedup_needs_a_published_value(cpu: View) -> None:
    with pytest.raises(ValueError, match="needs a value"):
        judged(a_claim({"rule": "speedup_at_least"}), cpu)
