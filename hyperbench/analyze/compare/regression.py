"""What a comparison means for a check that must not let a regression pass."""

from __future__ import annotations

from collections.abc import Sequence

from hyperbench.analyze.compare.compare import Comparison, Row
from hyperbench.analyze.compare.text import dims_of, interval_text, label, ratio_text
from hyperbench.analyze.format import printable, short
from hyperbench.stats.rounds import Reason

#: What the rounds were enough to say, be it that more of them are wanted.
_JUDGED = (
    Reason.INTERVAL_WITHIN_THRESHOLD,
    Reason.INTERVAL_BEYOND_THRESHOLD,
    Reason.INTERVAL_STRADDLES_THRESHOLD,
)


def failures_of(comparison: Comparison, percent: float) -> list[str]:
    """Why a check for regressions of more than `percent` fails, a line each; none where it passes.

    A point that is slower beyond it, a timing that B lacks, a ratio beyond it that could not be judged (the rounds of a
    slow call are few), and a comparison in which nothing could be judged: a check that cannot see a regression must not
    pass.
    """
    dims = dims_of(comparison)
    lines = [_failure(row, dims) for row in comparison.regressions(percent)]
    lines += [
        f"{label(row, dims)}: {ratio_text(row.judgement.ratio)} times as long, and it cannot be judged "
        f"({row.judgement.reason})"
        for row in unjudged(comparison)
        if row.judgement.ratio is not None and row.judgement.ratio > 1.0 + percent / 100.0 and not row.lost_in_b
    ]
    if not lines and not comparison.can_judge:
        lines.append("no point could be judged, so a regression would not be seen")
    return lines


def unjudged(comparison: Comparison) -> list[Row]:
    """The matched rows on which the rounds allow no judgement at all, of either kind."""
    return [row for row in comparison.rows if row.judgement.reason not in _JUDGED]


def unjudged_note(comparison: Comparison) -> str:
    """A line on how many passes could not be judged; "" if all could."""
    count = len(unjudged(comparison))
    if not count:
        return ""
    return f"{count} of {len(comparison.rows)} passes could not be judged; see their reasons"


def _failure(row: Row, dims: Sequence[str]) -> str:
    found = row.judgement
    if row.lost_in_b:
        detail = "missing" if row.point_b is None else row.detail
        return f"{label(row, dims)}: lost in B ({short(printable(detail))})"
    return f"{label(row, dims)}: slower, {ratio_text(found.ratio)} ({interval_text(found)})"
