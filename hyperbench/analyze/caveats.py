"""Caveats on methods: what their outputs depend on under a causal mask, and what their times leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import flags_in, is_null, lengths_text, milliseconds
from hyperbench.store.schema import Flag

if TYPE_CHECKING:
    import pandas as pd

#: Stands among the metrics and is a property: 1 where later queries leave earlier outputs alone, 0 where they do not.
CAUSAL_IN_Q = "causal_in_q"


def causal_in_q(row: Mapping[str, Any]) -> bool | None:
    """True if later queries leave earlier outputs of a row's method alone; None where that is not known."""
    value = row.get(CAUSAL_IN_Q)
    return None if value is None or is_null(value) else float(value) == 1.0


def leaks(row: Mapping[str, Any]) -> bool:
    """True if under the causal mask a row's method sees later keys or values, and was measured all the same."""
    return Flag.LEAKS in flags_in([row.get("flags")])


def caveats_of(row: Mapping[str, Any]) -> list[str]:
    """The caveats of a row of a view's timings on what its outputs depend on, short enough for a hover. Not escaped."""
    moved = ["not causal in q: later queries change earlier outputs"] if causal_in_q(row) is False else []
    return [*moved, *(["leaks: later keys or values change earlier outputs"] if leaks(row) else [])]


def caveats(frame: pd.DataFrame) -> list[str]:
    """Notes on the methods of a view's timings that are not causal in q, or leak, or have a set-up. Not escaped."""
    return [*_causality_notes(frame), *_leak_notes(frame), *_setup_notes(frame)]


def _causality_notes(frame: pd.DataFrame) -> list[str]:
    if CAUSAL_IN_Q not in frame:
        return []
    points = frame[frame[CAUSAL_IN_Q].notna()].drop_duplicates("point_id")
    told = [
        f"{method}{_where_not_causal(rows)}"
        for method, rows in points.groupby("method", sort=False)
        if (rows[CAUSAL_IN_Q] < 1.0).any()
    ]
    if not told:
        return []
    return [f"Not causal in q: {', '.join(told)}: under the causal mask, later queries change earlier outputs."]


def _where_not_causal(rows: pd.DataFrame) -> str:
    """The pairings and lengths at which a method is not causal in q, as far as it is elsewhere."""
    moved = rows[rows[CAUSAL_IN_Q] < 1.0]
    pairings = sorted(moved["pairing"].dropna().unique())
    parts = [f"pairing={', '.join(pairings)}"] if 0 < len(pairings) < rows["pairing"].nunique() else []
    alike = rows[rows["pairing"].isin(pairings)] if pairings else rows
    if (alike[CAUSAL_IN_Q] == 1.0).any():
        parts.append(f"n = {', '.join(f'{int(n):,}' for n in sorted(moved['seq_len'].unique()))}")
    return f" ({', '.join(parts)})" if parts else ""


def _leak_notes(frame: pd.DataFrame) -> list[str]:
    leaking = frame[frame["flags"].map(lambda cell: leaks({"flags": cell})).astype(bool)]
    told = [
        f"{method} (n = {lengths_text(rows['seq_len'].unique())})"
        for method, rows in leaking.groupby("method", sort=False)
    ]
    if not told:
        return []
    return [
        f"Leaks: {', '.join(told)}: under the causal mask later keys or values change earlier outputs, which "
        "allow_leak=true permits; these are no times and no errors of causal attention."
    ]


def _setup_notes(frame: pd.DataFrame) -> list[str]:
    longest = frame.groupby("method", sort=False)["setup_ms"].max().dropna()
    told = [f"{method} (up to {milliseconds(value)})" for method, value in longest.items()]
    return [f"Not in the times: the set-up of {', '.join(told)}."] if told else []
