"""Claims about language models: judged on runs of that model alone, and only by whole intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from hyperbench.analyze.claims.findings import Finding, Verdict
from hyperbench.analyze.claims.published import Claim, load_claims
from hyperbench.analyze.claims.report import judge
from hyperbench.analyze.claims.rules import rule_of
from hyperbench.store.schema import ErrorRow, Record
from tests.helpers.made_scores import longbench, point
from tests.helpers.synthetic_runs import MakeRun, view_from

MODEL = "chatglm2-6b-32k"
RULE = {"rule": "patched_model", "model": MODEL, "speedup": 1.5, "over_exact": 1.2}


def patched(model: str, costs: Sequence[tuple[str, float, float]], seq_len: int = 32_768) -> list[Record]:
    """Exact attention, and for some layers the loss of a method above it and its speedup; texts differ a little."""
    found: list[Record] = []
    for layers, cost, speedup in (("", 0.0, 1.0), *costs):
        method = "hyper_paper" if layers else "flash2"
        of = point(method, "perplexity", layers, seq_len, model=model)
        for text in range(3):
            found.append(ErrorRow(of, text, "loss", 2.0 + text + cost * (1 + 0.01 * text)))
            found.append(
                ErrorRow(of, text, "attention_ms", (100.0 + text) / speedup * (1 + 0.01 * text * bool(layers)))
            )
    return found


def finding(records: list[Record], check: dict[str, Any] = RULE) -> Finding:
    """What a rule finds in a run of these records."""
    claim = Claim("mine", "a claim", {"seq_len": 32_768}, "perplexity", 6.3, "somebody", False, check)
    return rule_of(claim).judge(claim, view_from(records))


@pytest.mark.parametrize(
    ("costs", "verdict"),
    [
        ([("last 7", 0.1, 2.0)], Verdict.HOLDS),
        ([("last 7", 0.1, 1.2), ("last 14", 0.15, 1.8)], Verdict.HOLDS),  # one number of layers is enough
        ([("last 7", 0.1, 1.2), ("last 14", 0.4, 1.8)], Verdict.FAILS),  # fast in one, near in the other
        ([("last 7", 0.1823, 2.0)], Verdict.OPEN),  # the interval lies on both sides of 1.2
    ],
)
def test_a_claim_of_a_model_holds_where_one_number_of_layers_is_fast_and_near(
    costs: list[tuple[str, float, float]], verdict: Verdict
) -> None:
    found = finding(patched(f"THUDM/{MODEL}", costs))
    assert found.verdict is verdict
    assert len(found.numbers) == 2


def test_another_model_or_another_length_is_not_judged_and_its_numbers_are_told() -> None:
    costs = [("last 7", 0.1, 2.0), ("last 14", 0.2, 3.0)]
    other = finding(patched("smollm2", costs))
    assert other.verdict is Verdict.OPEN
    assert other.reason == f"the claim is of {MODEL}; this run is of another model (smollm2)"
    assert [number.text.partition(":")[0] for number in other.numbers] == ["hyper_paper, L = 14, n = 32,768"] * 2
    assert other.numbers[1].value == pytest.approx(3.0, rel=0.02)
    assert "no perplexity at n = 32,768" in finding(patched(MODEL, costs, 4096)).reason
    assert "no perplexity of a patched language model" in finding(patched(MODEL, [])).reason


def test_scores_of_longbench_are_told_and_never_judged() -> None:
    check = {"rule": "longbench_scores", "model": MODEL}
    other = finding(longbench(), check)
    assert other.verdict is Verdict.OPEN
    assert "another model (tiny)" in other.reason
    assert [number.label for number in other.numbers] == [
        "exact: mean over the groups", "hyper, L = 7: mean over the groups", "hyper, L = 30: mean over the groups",
    ]  # fmt: skip
    assert [round(number.value, 1) for number in other.numbers] == [36.7, 26.7, 18.3]
    named = [
        dataclasses.replace(
            r, point=dataclasses.replace(r.point, input_params={**r.point.input_params, "model": f"org/{MODEL}"})
        )
        for r in longbench()
    ]
    same = finding(named, check)
    assert (same.verdict, same.reason) == (Verdict.OPEN, "the published values are not available here")
    assert "no scores of LongBench" in finding(patched(MODEL, []), check).reason


def test_the_published_rows_about_models_are_open_on_runs_of_others(make_run: MakeRun) -> None:
    rows = {one.claim.id: one for one in judge([make_run(patched("smollm2", [("last 7", 0.1, 2.0)]))])}
    for name in ("fig3-chatglm", "fig3-all-layers"):
        assert rows[name].verdict is Verdict.OPEN
        assert "another model (smollm2)" in rows[name].found[0].finding.reason
    assert "no scores of LongBench" in rows["table1"].found[0].finding.reason
    assert "times no attention by itself" in rows["fig4-causal"].found[0].finding.reason
    assert {claim.id for claim in load_claims()} == rows.keys()
