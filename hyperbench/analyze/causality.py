"""Causality in q, as measured: notes on methods whose outputs depend on later queries under a causal mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import is_null

if TYPE_CHECKING:
    import pandas as pd

#: Stands among the metrics and is a property: 1 where later queries leave earlier outputs alone, 0 where they do not.
CAUSAL_IN_Q = "causal_in_q"


def causal_in_q(row: Mapping[str, Any]) -> bool | None:
    """True if later queries leave earlier outputs of a row's method alone; None where that is not known."""
    value = row.get(CAUSAL_IN_Q)
    return None if value is None or is_null(value) else float(value) == 1.0


def causality_notes(frame: pd.DataFrame) -> list[str]:
    """A note on the methods of a view's timings that are not causal in q, and where; the text is not escaped."""
    if CAUSAL_IN_Q not in frame:
        return []
    points = frame[frame[CAUSAL_IN_Q].notna()].drop_duplicates("point_id")
    told = [
        f"{method}{_where(rows)}"
        for method, rows in points.groupby("method", sort=False)
        if (rows[CAUSAL_IN_Q] < 1.0).any()
    ]
    if not told:
        return []
    return [f"Not causal in q: {', '.join(told)}: under the causal mask, later queries change earlier outputs."]


def _where(rows: pd.DataFrame) -> str:
    """The pairings and lengths at which a method is not causal in q, as far as it is elsewhere."""
    moved = rows[rows[CAUSAL_IN_Q] < 1.0]
    pairings = sorted(moved["pairing"].dropna().unique())
    parts = [f"pairing={', '.join(pairings)}"] if 0 < len(pairings) < rows["pairing"].nunique() else []
    alike = rows[rows["pairing"].isin(pairings)] if pairings else rows
    if (alike[CAUSAL_IN_Q] == 1.0).any():
        parts.append(f"n = {', '.join(f'{int(n):,}' for n in sorted(moved['seq_len'].unique()))}")
    return f" ({', '.join(parts)})" if parts else ""
