"""Verdicts on the approximate methods of a run: one per method, masking and input, as lines and as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.caveats import causal_in_q, leaks
from hyperbench.analyze.format import PASS_LABELS, counted, is_null, json_value, plain
from hyperbench.analyze.joins import CONDITION_DIMS, SHAPE_DIMS, records, settings, varying
from hyperbench.analyze.verdict.rules import Case, Finding, Interval, Outcome, Reason, best, judge
from hyperbench.analyze.verdict.words import Place, sentence
from hyperbench.analyze.view import MAIN_ERROR, View, reason

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
#: Trivial answers by the metric of their error, in the order in which they are compared and named.
_ANSWERS = {"zero_rel_fro": "answering zero", "mean_v_rel_fro": "answering mean(v)"}
#: The pass that is judged: the first of these that there is.
_PASSES = ("forward_backward", "forward", "backward")
#: There is a verdict for each value of these, at the largest length.
_PLACE = (*(dim for dim in (*SHAPE_DIMS, *CONDITION_DIMS) if dim != "seq_len"), "run_id")
#: These are told in the sentence itself.
_TOLD = ("is_causal", "input")
_MAX_LINES = 16
_ROW_KEYS = ("point_id", "method", "is_causal", "input", "seq_len", "pass")


@dataclass(frozen=True)
class Verdict:
    """A verdict on a method at a place: the row of its times, the numbers, what was found, and a sentence.

    `setting` are the parameters in which the method's settings there differ, of which there are `num_settings`.
    """

    row: Row
    case: Case
    finding: Finding
    text: str
    setting: str = ""
    num_settings: int = 1


def verdicts(view: View) -> list[Verdict]:
    """A verdict for each approximate method, masking and input, at the largest length that has a speedup.

    The pass is forward+backward, or the forward pass where that one alone was timed. Of several settings of a method
    the best counts. Methods that are exact, trivial or an oracle get none, and nothing does in a run without the
    baseline.
    """
    frame = view.timings
    if not (frame["method"] == view.baseline).any():
        return []
    named = list(varying(frame, [dim for dim in _PLACE if dim not in _TOLD]))
    told = settings(frame)
    judged = [m for m in view.methods if m not in view.exact_methods and m not in view.kinds]
    found = [_verdict(view, rows, told, named) for method in judged for rows in _places(frame, method)]
    return sorted(found, key=lambda verdict: bool(verdict.row["is_causal"]))


def verdict_lines(found: Sequence[Verdict]) -> list[str]:
    """The sentences of verdicts as lines, and how many more there are. Not escaped."""
    lines = [f"verdict: {verdict.text}" for verdict in found[:_MAX_LINES]]
    if len(found) > _MAX_LINES:
        more = counted(len(found) - _MAX_LINES, "more verdict")
        lines.append(f"{more}: hyperbench show --json has all, a filter such as input=NAME chooses some")
    return lines


def verdict_data(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Verdicts as plain data that JSON can hold."""
    return [
        {
            **{name: json_value(v.row[name]) for name in _ROW_KEYS},
            "setting": v.setting,
            "num_settings": v.num_settings,
            "outcome": str(v.finding.outcome),
            "reason": str(v.finding.reason),
            "text": v.text,
            **_numbers("speedup", v.case.speedup),
            **_numbers("error", v.case.error),
            "against": v.finding.against.name if v.finding.against else None,
            **_numbers("against_error", v.finding.against.error if v.finding.against else None),
        }
        for v in found
    ]


def _places(frame: pd.DataFrame, method: str) -> list[list[Row]]:
    """The rows of a method at each place, at all lengths and settings."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in records(frame[frame["method"] == method]):
        found.setdefault(tuple(row[dim] for dim in _PLACE), []).append(row)
    return list(found.values())


def _verdict(view: View, at_place: Sequence[Row], told: Mapping[str, str], named: Sequence[str]) -> Verdict:
    """The verdict on a method from its rows of one place, at all lengths and settings."""
    rows, slower_before = _rows_to_judge(at_place)
    cases, beside = [_case(view, row) for row in rows], _beside(view, rows[0])
    judged = [(judge(case, _answers(row), beside), case) for row, case in zip(rows, cases, strict=True)]
    index = best(judged)
    row, (finding, case) = rows[index], judged[index]
    if view.as_paper:
        finding = Finding(Outcome.NO_VERDICT, Reason.NO_RESULT)
    setting = told[str(row["point_id"])] if len(rows) > 1 else ""
    mask, more = "with" if row["is_causal"] else "without", [f"{dim}={plain(row[dim])}" for dim in named]
    place = Place(
        str(row["method"]) + (f" ({setting}, the best of {len(rows)} settings)" if len(rows) > 1 else ""),
        view.baseline,
        f"n = {int(row['seq_len']):,} {mask} a causal mask ({', '.join([PASS_LABELS[row['pass']], *more])})",
        str(row["input"]),
        view.error_reasons.get(row["point_id"], "") if finding.reason is Reason.NO_ERROR else reason(row),
        slower_before,
    )
    text = sentence(place, case, finding, _answers(row))
    text += "; it is not causal in q" if causal_in_q(row) is False else ""
    text += "; it leaks: it sees later keys or values" if leaks(row) else ""
    return Verdict(row, case, finding, text, setting, len(rows))


def _rows_to_judge(rows: Sequence[Row]) -> tuple[list[Row], bool]:
    """The rows of the widest pass at the largest length, one for each setting; with a speedup as far as there are any.

    Also true if there are shorter lengths, at none of which the method was faster.
    """
    known = ([row for row in rows if not is_null(row[name])] for name in ("speedup", "median_ms"))
    rows = next((some for some in known if some), rows)
    widest = next(name for name in _PASSES if any(row["pass"] == name for row in rows))
    rows = [row for row in rows if row["pass"] == widest]
    largest = max(row["seq_len"] for row in rows)
    shorter = [row for row in rows if row["seq_len"] < largest]
    slower_before = bool(shorter) and not any(row["speedup_low"] > 1.0 for row in shorter)
    return [row for row in rows if row["seq_len"] == largest], slower_before


def _beside(view: View, row: Row) -> list[Case]:
    """The trivial methods at the place, the length and the pass of a row."""
    trivial = [method for method in view.methods if view.kinds.get(method) == "trivial"]
    if not trivial:
        return []
    is_beside = view.timings["method"].isin(trivial)
    for dim in (*_PLACE, "seq_len", "pass"):
        is_beside &= view.timings[dim] == row[dim]
    return [_case(view, other) for other in records(view.timings[is_beside])]


def _case(view: View, row: Row) -> Case:
    """The case of a row; a draw without an error leaves it without one."""
    error = None if row["point_id"] in view.error_reasons else _interval(row, MAIN_ERROR)
    return Case(str(row["method"]), not is_null(row["median_ms"]), _interval(row, "speedup"), error)


def _answers(row: Row) -> list[Case]:
    """The trivial answers whose error is known on the input of a row."""
    found = [Case(label, error=_interval(row, metric)) for metric, label in _ANSWERS.items()]
    return [case for case in found if case.error is not None]


def _interval(row: Row, column: str) -> Interval | None:
    """A number of a row with its interval, which is a point where it has none; None without a number."""
    if is_null(row.get(column)):
        return None
    value = float(row[column])
    low, high = (value if is_null(end) else float(end) for end in (row[f"{column}_low"], row[f"{column}_high"]))
    return Interval(value, low, high)


def _numbers(name: str, interval: Interval | None) -> dict[str, Any]:
    ends = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    return {f"{name}{end}": json_value(value) for end, value in zip(("", "_low", "_high"), ends, strict=True)}
