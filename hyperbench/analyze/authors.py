"""Numbers as the paper's authors state them, from a run of protocol=paper: shown beside those of another run only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperbench.analyze.format import MASK_LABELS, is_null, milliseconds, plain, ratio
from hyperbench.analyze.joins import records, varying
from hyperbench.analyze.text_table import Digest
from hyperbench.analyze.view import AS_PAPER, View, make_view
from hyperbench.store.run_folder import Run, load_run

_TITLE = "as the authors state it (20th percentiles, forward+backward as a sum; no result by itself)"
_STATED = ("forward", "backward")
_SHOWN = ("forward", "forward_backward")


def view_beside(run: Run, view: View, beside: Path | None) -> View | None:
    """The view of the run that one of protocol=paper is shown beside; None for any other run.

    Raises ValueError where a run of protocol=paper has no `beside` of another protocol with points of its own, or any
    other run has one.
    """
    if not view.as_paper:
        if beside is not None:
            raise ValueError(
                f"--beside is for a run of protocol=paper, and {run.path} is none; two runs are laid side by side by: "
                "hyperbench compare A B"
            )
        return None
    if beside is None:
        raise ValueError(f"{run.path} was {AS_PAPER}; it is shown beside a run of another protocol only: --beside DIR")
    other = make_view(load_run(Path(beside)), view.baseline)
    if other.as_paper:
        raise ValueError(f"--beside {beside}: that run, too, was {AS_PAPER}; allowed: a run of another protocol")
    if not set(other.timings["point_id"]) & set(view.timings["point_id"]):
        raise ValueError(f"--beside {beside}: it has no point of {run.path}; measure the same points in both")
    return other


def refuse_alone(run: Run, view: View) -> None:
    """Raise ValueError for a run of protocol=paper, of which no figure is drawn."""
    if view.as_paper:
        raise ValueError(
            f"{run.path} was {AS_PAPER}; it has no figure, and a table beside another run: "
            f"hyperbench show --run {run.path} --beside DIR"
        )


def authors_digests(view: View, beside: View) -> list[Digest]:
    """A table per masking: the numbers of a run timed as the authors did, and those of another run beside them.

    Forward and backward are 20th percentiles; forward+backward is their sum, and not the pass that was timed. Those of
    `beside` are medians of passes that were timed directly; empty where it lacks a point.
    """
    frame = view.timings
    dims = ["seq_len", *(d for d in varying(frame) if d not in ("seq_len", "method", "is_causal", "pass"))]
    others = _by_point(beside)
    other = "/".join(sorted(str(p) for p in beside.timings["protocol"].unique()))
    tables = []
    for is_causal in sorted(bool(m) for m in frame["is_causal"].unique()):
        rows = []
        for point_id, passes in _by_point(view).items():
            one = next(iter(passes.values()))
            if bool(one["is_causal"]) is not is_causal:
                continue
            where = [f"{int(one[d]):,}" if d == "seq_len" else plain(one[d]) for d in dims]
            stated, stated_base = _stated(passes, ""), _stated(passes, "baseline_")
            timed, timed_base = _timed(others.get(point_id, {}), ""), _timed(others.get(point_id, {}), "baseline_")
            cells = []
            for name in _SHOWN:
                for own, base in ((stated, stated_base), (timed, timed_base)):
                    cells += _cells(own[name], base[name], is_baseline=one["method"] == view.baseline)
            rows.append((one["method"], *where, *cells))
        columns = ("method", *("n" if d == "seq_len" else d for d in dims),
                   "forward", "speedup", f"forward, {other}", f"speedup, {other}",
                   "forward + backward", "speedup of the sums", f"forward+backward, {other}",
                   f"its speedup, {other}")  # fmt: skip
        is_number = (False, *(d == "seq_len" for d in dims), *(True,) * 8)
        title = f"{_TITLE}, beside the medians of protocol {other}, {MASK_LABELS[is_causal]}"
        tables.append(Digest(title, columns, is_number, tuple(rows)))
    return tables


def _by_point(view: View) -> dict[str, dict[str, Mapping[str, Any]]]:
    points: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in records(view.timings):
        points.setdefault(row["point_id"], {})[row["pass"]] = row
    return points


def _cells(own_ms: float | None, base_ms: float | None, *, is_baseline: bool) -> list[str]:
    """A time, and its speedup over the baseline's, empty for the baseline itself and where either is missing."""
    speedup = None if own_ms is None or base_ms is None else base_ms / own_ms
    return [milliseconds(own_ms), "" if is_baseline else ratio(speedup)]


def _stated(passes: Mapping[str, Mapping[str, Any]], side: str) -> dict[str, float | None]:
    """The authors' numbers of a point in milliseconds: the forward pass, and the sum of both passes."""
    forward, backward = (_positive(passes, name, f"{side}p20_ms") for name in _STATED)
    return {"forward": forward, "forward_backward": None if forward is None or backward is None else forward + backward}


def _timed(passes: Mapping[str, Mapping[str, Any]], side: str) -> dict[str, float | None]:
    """The medians of a point in milliseconds, of passes as they were timed."""
    return {name: _positive(passes, name, f"{side}median_ms") for name in _SHOWN}


def _positive(passes: Mapping[str, Mapping[str, Any]], name: str, column: str) -> float | None:
    value: Any = passes[name][column] if name in passes else None
    return None if is_null(value) or value <= 0 else float(value)
