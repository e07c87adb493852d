"""A comparison in the terminal and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.compare.compare import Comparison, Row
from hyperbench.analyze.compare.run_side import Side
from hyperbench.analyze.format import (
    is_null,
    json_value,
    milliseconds,
    pass_label,
    plain,
    printable,
    short,
    significant,
)
from hyperbench.analyze.show import FLAG_MEANINGS, print_digest
from hyperbench.analyze.text_table import Digest
from hyperbench.stats.rounds import MIN_ROUNDS, Judgement, Reason, Verdict
from hyperbench.store.schema import Point

if TYPE_CHECKING:
    from rich.console import Console

_MEANINGS = {
    Reason.INTERVAL_STRADDLES_THRESHOLD: "the interval reaches over a threshold: more rounds would narrow it",
    Reason.TOO_FEW_ROUNDS: f"fewer than {MIN_ROUNDS} rounds a side, and samples of one process are no substitute: "
    "measure with protocol.rounds=5",
    Reason.UNEQUAL_ROUNDS: "the two sides were not measured in as many (in one run: not in the same) rounds",
    Reason.ZERO_VARIANCE: "the rounds do not differ at all, which no clock of a machine does",
    Reason.ZERO_TIME: "a median of zero has no ratio",
    Reason.DIFFERENT_PROTOCOL: "times of different protocols are not comparable, nor are those of other settings that "
    "change what is timed",
    Reason.THROTTLED: "the clocks of one side were throttled",
    Reason.NO_TIMING: "neither side has a time",
    Reason.NO_TIMING_IN_A: "A has no time",
    Reason.NO_TIMING_IN_B: "B has no time",
}
_STYLES = {Verdict.FASTER: "green", Verdict.SLOWER: "red"}
_FIELDS = (
    "is_causal", "seq_len", "device", "dtype", "batch", "heads", "kv_heads", "head_dim", "input", "seed"
)  # fmt: skip


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print what is compared, what differs about it, a table of the verdicts, the points left over, and one line."""
    from rich.text import Text

    a, b = comparison.a, comparison.b
    for name, side in (("A", a), ("B", b)):
        console.print(Text(f"{name}  {_described(side)}", style="bold"))
    for warning in comparison.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    if comparison.rows:
        print_digest(_digest(comparison), console)
        console.print()
    for reason in Reason:
        if reason in _MEANINGS and any(row.judgement.reason is reason for row in comparison.rows):
            console.print(Text(f"{reason}: {_MEANINGS[reason]}{_rounds_note(comparison, reason)}", style="dim"))
    dims = dims_of(comparison)
    for row in comparison.rows:
        if row.detail:
            console.print(Text(f"{label(row, dims)}: {short(printable(row.detail))}", style="yellow"))
    for name, side in (("A", a), ("B", b)):
        for line in _flagged(name, side):
            console.print(Text(line, style="yellow"))
    for line in _leftover(comparison, dims):
        console.print(Text(line, style="yellow"))
    console.print(Text(_method_note(comparison), style="dim"))
    console.print(Text(comparison.headline(), style="bold"))


def _rounds_note(comparison: Comparison, reason: Reason) -> str:
    """How many rounds the rows of a reason that is about their number have on either side."""
    if reason not in (Reason.TOO_FEW_ROUNDS, Reason.UNEQUAL_ROUNDS):
        return ""
    rows = [row for row in comparison.rows if row.judgement.reason is reason]
    counts = dict.fromkeys((row.rounds_a, row.rounds_b) for row in rows)
    return f" (timed rounds here: {', '.join(f'{a} of A and {b} of B' for a, b in counts)})"


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data that JSON can hold."""
    data = {
        "a": _side_data(comparison.a),
        "b": _side_data(comparison.b),
        "paired": comparison.paired,
        "threshold": comparison.threshold,
        "warnings": list(comparison.warnings),
        "verdict": comparison.headline(),
        "counts": {str(verdict): count for verdict, count in comparison.counts.items()},
        "points": [_row_data(row) for row in comparison.rows],
        "unmatched": [_row_data(row) for row in comparison.unmatched],
    }
    return dict(json_value(data))


def _digest(comparison: Comparison) -> Digest:
    dims = dims_of(comparison)
    names = _side_names(comparison)
    heads = [
        *(_head(dim) for dim in dims),
        "pass",
        *names,
        f"{names[1]}/{names[0]}",
        "95 % interval",
        "verdict",
        "reason",
    ]
    numbers = [dim in ("seq_len", "batch", "heads", "kv_heads", "head_dim", "seed") for dim in dims]
    rows = []
    for row in comparison.rows:
        found = row.judgement
        rows.append(
            (
                *(_cell(row, dim) for dim in dims),
                pass_label(str(row.pass_)),
                milliseconds(row.a_ms),
                milliseconds(row.b_ms),
                ratio_text(found.ratio),
                interval_text(found),
                str(found.verdict),
                str(found.reason),
            )
        )
    return Digest("B against A", tuple(heads), (*numbers, False, True, True, True, True, False, False), tuple(rows))


def _side_names(comparison: Comparison) -> tuple[str, str]:
    a, b = comparison.a.method, comparison.b.method
    return (printable(a), printable(b)) if a and b and a != b else ("A", "B")


def _described(side: Side) -> str:
    env = side.environment
    machine = env.get("machine") or env.get("gpu_name") or env.get("cpu_model") or "machine not recorded"
    commit = str(env.get("commit") or "")[:10] or "not recorded"
    rounds = f"{side.num_rounds} round{'' if side.num_rounds == 1 else 's'}"
    parts = [
        str(side.path),
        *([f"method {side.method}"] if side.method else []),
        str(machine),
        f"protocol {', '.join(side.protocols) or 'unknown'}, {rounds}",
        f"commit {commit}",
    ]
    return "  ·  ".join(printable(part) for part in parts)


def _method_note(comparison: Comparison) -> str:
    floor = max(comparison.a.aa_floor, comparison.b.aa_floor)
    why = (
        f" (the A/A floor: {floor:.2%})"
        if floor == comparison.threshold
        else f"; A/A floor {floor:.2%}"
        if floor
        else ""
    )
    unknown = [name for name, side in (("A", comparison.a), ("B", comparison.b)) if side.known_floor is None]
    if unknown:
        why += f"; no A/A floor is known of {' and '.join(unknown)}"
    how = "pairs of rounds" if comparison.paired else "rounds"
    return (
        f"Times: geometric means of the rounds' medians; the ratio is of times, its interval bootstrapped over {how}; "
        f"threshold ±{comparison.threshold:.2%}{why}."
    )


def _flagged(name: str, side: Side) -> list[str]:
    """What a reader must know of the times of a side: a line for each flag, with how many of its timings have it."""
    counts = Counter(flag for timing in side.all_timings() for flag in timing.flags)
    total = sum(1 for _ in side.all_timings())
    return [
        f"flags of {name}: {printable(flag)} at {count} of {total} timings"
        + (f": {FLAG_MEANINGS[flag]}" if flag in FLAG_MEANINGS else "")
        for flag, count in sorted(counts.items())
    ]


def _leftover(comparison: Comparison, dims: Sequence[str]) -> list[str]:
    """Points without partner, a line each with their passes."""
    lines: dict[str, list[str]] = {}
    for row in comparison.unmatched:
        where = "only in A" if row.judgement.reason is Reason.MISSING_IN_B else "only in B"
        lines.setdefault(f"{where}: {_point_label(row, dims)}", []).append(pass_label(str(row.pass_)))
    return [f"{line}, {', '.join(passes)}" for line, passes in lines.items()]


def label(row: Row, dims: Sequence[str]) -> str:
    """A pass of a point, by what tells it from others (`dims`)."""
    return f"{_point_label(row, dims)}, {pass_label(str(row.pass_))}"


def _point_label(row: Row, dims: Sequence[str]) -> str:
    names = [d for d in dims if d not in ("method", "seq_len")]
    told = [row.point.method] if row.point_a is None or row.point_b is None or "method" in dims else []
    told.append(f"n={row.point.seq_len:,}")
    told += [f"{_head(name)}={cell}" for name in names if (cell := _cell(row, name))]
    return printable(" ".join(told))


def dims_of(comparison: Comparison) -> list[str]:
    """What tells the rows apart: method and length always, everything else where it takes several values on a side."""
    rows = (*comparison.rows, *comparison.unmatched)
    sides = [[_flat(row.point_a) for row in rows if row.point_a], [_flat(row.point_b) for row in rows if row.point_b]]
    flats = [flat for side in sides for flat in side]
    hidden = {"method", "seq_len"}
    if all(flat["heads"] == flat["kv_heads"] for flat in flats):
        hidden.add("kv_heads")
    names = [name for name in dict.fromkeys(name for flat in flats for name in flat) if name not in hidden]
    methods = [] if comparison.a.method != comparison.b.method else ["method"]
    return [*methods, "seq_len", *(name for name in names if any(_varies(side, name) for side in sides))]


def _varies(flats: Iterable[dict[str, Any]], name: str) -> bool:
    """Whether a field takes several values; a method's own parameter: within one method."""
    values: dict[Any, set[str]] = {}
    for flat in flats:
        values.setdefault(None if name in _FIELDS else flat["method"], set()).add(plain(flat.get(name)))
    return any(len(found) > 1 for found in values.values())


def _flat(point: Point) -> dict[str, Any]:
    """The fields of a point by name, its method's and its input's parameters among them."""
    fields = {name: getattr(point, name) for name in ("method", *_FIELDS)}
    return {**fields, **{f"input.{k}": v for k, v in point.input_params.items()}, **{
        k if k not in fields else f"{point.method}.{k}": v for k, v in point.hyper.items()
    }}  # fmt: skip


def _cell(row: Row, name: str) -> str:
    for point in (row.point_b, row.point_a):
        value = _flat(point).get(name) if point is not None else None
        if value is not None:
            return f"{value:,}" if name == "seq_len" else printable(plain(value))
    return ""


def _head(name: str) -> str:
    return {"seq_len": "n", "is_causal": "causal"}.get(name, printable(name))


def ratio_text(value: float | None) -> str:
    """A ratio in four digits; "" for none."""
    return significant(value, 4)


def interval_text(found: Judgement) -> str:
    """The 95 % interval of a ratio; "" where there is none."""
    return "" if is_null(found.low) else f"{ratio_text(found.low)} to {ratio_text(found.high)}"


def _side_data(side: Side) -> dict[str, Any]:
    return {
        "run": str(side.path),
        "run_id": side.environment.get("run_id"),
        "method": side.method,
        "machine": side.environment.get("machine"),
        "commit": side.environment.get("commit"),
        "protocols": side.protocols,
        "rounds": side.num_rounds,
        "aa_floor": side.known_floor,
        "flags": dict(Counter(flag for timing in side.all_timings() for flag in timing.flags)),
    }


def _row_data(row: Row) -> dict[str, Any]:
    a, b, found = row.point_a, row.point_b, row.judgement
    return {
        "point_id_a": a.point_id if a else None,
        "point_id_b": b.point_id if b else None,
        "method_a": a.method if a else None,
        "method_b": b.method if b else None,
        **{name: getattr(row.point, name) for name in _FIELDS},
        "input_params": row.point.input_params,
        "hyper_a": a.hyper if a else None,
        "hyper_b": b.hyper if b else None,
        "pass": str(row.pass_),
        "verdict": str(found.verdict),
        "reason": str(found.reason),
        "ratio": found.ratio,
        "ratio_low": found.low,
        "ratio_high": found.high,
        "a_ms": row.a_ms,
        "b_ms": row.b_ms,
        "rounds_a": row.rounds_a,
        "rounds_b": row.rounds_b,
        "detail": row.detail,
        "lost_in_b": row.lost_in_b,
    }
