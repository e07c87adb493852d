"""Numbers as the paper's authors state them, from a run of protocol=paper: shown beside its medians, never alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperbench.analyze.digest import Digest
from hyperbench.analyze.tables import records, varying
from hyperbench.analyze.text import MASK_LABELS, is_null, milliseconds, plain, ratio
from hyperbench.analyze.view import View

_TITLE = "as the authors state it (20th percentiles, forward+backward as a sum; no result by itself)"


def authors_digests(view: View) -> list[Digest]:
    """A table per masking for a run timed as the authors did, none for others.

    Forward and backward are 20th percentiles; forward+backward is their sum, and not the pass that was timed.
    """
    if not view.as_paper or view.timings.empty:
        return []
    frame = view.timings
    dims = ["seq_len", *(d for d in varying(frame) if d not in ("seq_len", "method", "is_causal", "pass"))]
    tables = []
    for is_causal in sorted(bool(m) for m in frame["is_causal"].unique()):
        points: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in records(frame[frame["is_causal"] == is_causal]):
            points.setdefault(row["point_id"], {})[row["pass"]] = row
        rows = []
        for passes in points.values():
            one = next(iter(passes.values()))
            mine, base = _stated(passes, ""), _stated(passes, "baseline_")
            where = [f"{int(one[d]):,}" if d == "seq_len" else plain(one[d]) for d in dims]
            cells = []
            for name in ("forward", "forward_backward"):
                own_ms, base_ms = mine[name], base[name]
                speedup = None if own_ms is None or base_ms is None else base_ms / own_ms
                cells += [milliseconds(own_ms), "" if one["method"] == view.baseline else ratio(speedup)]
            rows.append((one["method"], *where, *cells))
        columns = ("method", *("n" if d == "seq_len" else d for d in dims),
                   "forward", "speedup", "forward + backward", "speedup of the sums")  # fmt: skip
        is_number = (False, *(d == "seq_len" for d in dims), True, True, True, True)
        tables.append(Digest(f"{_TITLE}, {MASK_LABELS[is_causal]}", columns, is_number, tuple(rows)))
    return tables


def _stated(passes: Mapping[str, Mapping[str, Any]], side: str) -> dict[str, float | None]:
    """The authors' numbers of a point in milliseconds: the forward pass, and the sum of both passes."""
    found: dict[str, float | None] = {}
    for name in ("forward", "backward"):
        value: Any = passes[name][f"{side}p20_ms"] if name in passes else None
        found[name] = None if is_null(value) or value <= 0 else float(value)
    forward, backward = found["forward"], found["backward"]
    return {"forward": forward, "forward_backward": None if forward is None or backward is None else forward + backward}
