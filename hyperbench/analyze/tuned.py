"""Choice of a method's setting from a run over its parameters: the fastest one whose error stays below a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hyperbench.analyze.format import counted, is_null, json_value, milliseconds, plain, ratio, short, significant
from hyperbench.analyze.joins import records
from hyperbench.analyze.text_table import TextTable
from hyperbench.analyze.view import MAIN_ERROR, View, reason
from hyperbench.store.parameters import OF_METHOD

#: Passes by which speed is judged, the widest first.
WIDEST = ("forward_backward", "forward", "backward")
#: Settings that a table shows.
_MOST_ROWS = 12


class Measured(NamedTuple):
    """A number with its 95 % interval; of an error it spans the seeds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """One setting of a method as measured: its parameters, the time of a pass in ms, speedup and error.

    What could not be measured is null, and `reason` says why.
    """

    values: dict[str, Any]
    time_ms: Measured | None
    speedup: Measured | None
    error: Measured | None
    reason: str = ""

    @property
    def text(self) -> str:
        """The parameters as one writes them: "block_size=128 sample_size=64"."""
        return " ".join(f"{name}={plain(value)}" for name, value in self.values.items()) or "as configured"


@dataclass(frozen=True)
class Choice:
    """The fastest setting within the limit, and those that are as fast within noise; else the one of least error.

    `within` are all settings within the limit, the fastest first; `unmeasured` those without a time or an error.
    """

    fastest: Setting | None
    as_fast: tuple[Setting, ...]
    least_error: Setting | None
    within: tuple[Setting, ...]
    unmeasured: tuple[Setting, ...]


def widest_pass(view: View) -> str:
    """The pass by which the speed of a run is judged. Raises ValueError if nothing was timed."""
    timed = set(view.timings["pass"])
    for name in WIDEST:
        if name in timed:
            return name
    raise ValueError("this run holds no timing yet")


def settings_of(view: View, method: str, parameters: Sequence[str]) -> list[Setting]:
    """Every setting of a method that a run has, by the values of these parameters, with its widest pass."""
    frame = view.timings
    rows = records(frame[(frame["method"] == method) & (frame["pass"] == widest_pass(view))])
    return [
        Setting(
            {name: json_value(_parameter(row, name)) for name in parameters},
            _measured(row, "median_ms", "ci_low_ms", "ci_high_ms"),
            _measured(row, "speedup", "speedup_low", "speedup_high"),
            _measured(row, MAIN_ERROR, f"{MAIN_ERROR}_low", f"{MAIN_ERROR}_high"),
            reason(row) or view.error_reasons.get(row["point_id"], ""),
        )
        for row in rows
    ]


def choose(settings: Sequence[Setting], max_error: float) -> Choice:
    """Choose by the median time among the settings whose error is at most `max_error` at the upper end of its interval.

    Of equal times the one of less error is taken; settings are as fast within noise where their intervals meet.
    """
    known = [s for s in settings if s.time_ms is not None and s.error is not None]
    within = sorted((s for s in known if _upper(s) <= max_error), key=lambda s: (_time(s).value, _upper(s)))
    fastest = within[0] if within else None
    as_fast = [s for s in within[1:] if _time(s).low <= _time(within[0]).high]
    least = min(known, key=lambda s: (_upper(s), _time(s).value), default=None)
    return Choice(fastest, tuple(as_fast), least, tuple(within), tuple(s for s in settings if s not in known))


def setting_line(setting: Setting, baseline: str) -> str:
    """Time, speedup and error of a setting in one line."""
    parts = []
    if setting.time_ms is not None:
        parts.append(f"{milliseconds(setting.time_ms.value)}{_span(setting.time_ms, milliseconds)}")
    if setting.speedup is not None:
        parts.append(f"{ratio(setting.speedup.value)} as fast as {baseline}{_span(setting.speedup, ratio)}")
    if setting.error is not None:
        parts.append(f"error {significant(setting.error.value)} (at most {significant(setting.error.high)})")
    return ", ".join(parts) or f"not measured: {short(setting.reason)}"


def choice_lines(choice: Choice, method: str, baseline: str, max_error: float) -> list[str]:
    """The choice in words, or that there is none and what comes nearest."""
    limit = f"{max_error:g}"
    lost = [f"{counted(len(choice.unmeasured), 'setting')} could not be measured: {_first_reason(choice)}"]
    notes = lost if choice.unmeasured else []
    if choice.least_error is None:
        return [f"no setting of {method} was measured", *notes]
    if choice.fastest is None:
        least = choice.least_error
        return [
            f"no setting of {method} has an error of at most {limit} here; the least has {least.text}",
            setting_line(least, baseline), *notes,
        ]  # fmt: skip
    fastest = choice.fastest
    lines = [
        f"the fastest setting of {method} with an error of at most {limit}: {fastest.text}",
        setting_line(fastest, baseline),
    ]
    if fastest.speedup is not None and fastest.speedup.high < 1.0:
        lines.append(f"{baseline} is faster: here no setting within the limit pays")
    if choice.as_fast:
        others = ", ".join(f"{s.text}" for s in choice.as_fast[:3])
        more = f" and {len(choice.as_fast) - 3} more" if len(choice.as_fast) > 3 else ""
        lines.append(f"as fast within noise: {others}{more}")
    return [*lines, *notes]


def settings_table(choice: Choice, baseline: str) -> TextTable:
    """The fastest settings within the limit, as a table."""
    rows = tuple(
        (
            s.text,
            milliseconds(s.time_ms and s.time_ms.value),
            ratio(s.speedup and s.speedup.value),
            significant(s.error and s.error.value),
            significant(s.error and s.error.high),
        )
        for s in choice.within[:_MOST_ROWS]
    )
    left = len(choice.within) - len(rows)
    title = "settings within the limit" + (f" (the fastest {_MOST_ROWS}; {left} more)" if left else "")
    return TextTable(
        title, ("setting", "time", f"over {baseline}", "error", "at most"), (False, True, True, True, True), rows
    )


def setting_data(setting: Setting | None) -> dict[str, Any] | None:
    """A setting as plain data."""
    if setting is None:
        return None
    numbers = {"time_ms": setting.time_ms, "speedup": setting.speedup, "error": setting.error}
    return {
        "parameters": setting.values,
        **{name: None if n is None else json_value(n._asdict()) for name, n in numbers.items()},
        "reason": setting.reason,
    }


def _parameter(row: Mapping[str, Any], name: str) -> Any:
    # A parameter with the name of another column stands under a longer one.
    return row.get(f"{OF_METHOD}{name}", row.get(name))


def _measured(row: Mapping[str, Any], *names: str) -> Measured | None:
    if any(is_null(row.get(name)) for name in names):
        return None
    return Measured(*(float(row[name]) for name in names))


def _time(setting: Setting) -> Measured:
    assert setting.time_ms is not None
    return setting.time_ms


def _upper(setting: Setting) -> float:
    assert setting.error is not None
    return setting.error.high


def _span(number: Measured, show: Any) -> str:
    return f" ({show(number.low)} to {show(number.high)})" if number.low < number.high else ""


def _first_reason(choice: Choice) -> str:
    return short(next((s.reason for s in choice.unmeasured if s.reason), "no reason is known"))
