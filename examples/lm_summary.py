"""From the rows of a training check to its summary, and from a summary to tables in Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_training import Row

_BITS = 1 / math.log(2)


class SummaryError(ValueError):
    """A folder that holds no summary; the message is one line for the user."""


def summarise(rows: Sequence[Row], seconds: Mapping[str, Sequence[float]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The last losses of each attention, a number per seed, and their gap to exact attention's of the same seed.

    `facts` are what was found apart from the losses: gradient_errors, share_met and exact_read_with_hyper.
    """
    first = {(row.attention, row.seed): row for row in reversed(rows)}
    last = {(row.attention, row.seed): row for row in rows}
    found = {}
    for name in dict.fromkeys(row.attention for row in rows):
        seeds = [seed for attention, seed in last if attention == name]
        ends = [last[name, seed] for seed in seeds]
        has_exact = all(("exact", seed) in last for seed in seeds)
        exact = [last["exact", seed].eval_loss for seed in seeds] if has_exact else None
        found[name] = {
            "seeds": seeds,
            "first_eval_loss": [first[name, seed].eval_loss for seed in seeds],
            "train_loss": [row.train_loss for row in ends],
            "eval_loss": [row.eval_loss for row in ends],
            "eval_bits_per_byte": [row.eval_loss * _BITS for row in ends],
            "eval_loss_exact": [row.eval_loss_exact for row in ends],
            "gap_to_exact": _differences([row.eval_loss for row in ends], exact),
            "gap_to_exact_read_with_exact": _differences([row.eval_loss_exact for row in ends], exact),
            "train_seconds": list(seconds[name]),
        }
    return {"unit": "nats per byte", "attentions": found, **facts}


def _differences(values: list[float], base: list[float] | None) -> list[float] | None:
    return None if base is None else [value - other for value, other in zip(values, base, strict=True)]


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary.json of a folder. Raises SummaryError, one line, if there is none."""
    path = folder / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise SummaryError(f"--table={folder}: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SummaryError(f"--table={folder}: {path} is no JSON") from None
    if "attentions" not in summary:
        raise SummaryError(f"--table={folder}: {path} is no summary of a training check")
    return summary


def table(summary: Mapping[str, Any]) -> str:
    """The losses, and the gradients' errors where they were taken, as Markdown."""
    lines = [
        "| trained with | held-out loss, nats per byte | bits per byte | gap to exact | read with exact attention, gap"
        " | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in summary["attentions"].items():
        cells = (
            f"`{name}`",
            _spread(found["eval_loss"]),
            f"{_mean(found['eval_bits_per_byte']):.3f}",
            _spread(found["gap_to_exact"], "+"),
            _spread(found["gap_to_exact_read_with_exact"], "+"),
            f"{_mean(found['train_seconds']):.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if summary["exact_read_with_hyper"]:
        base = summary["attentions"]["exact"]["eval_loss"]
        swapped = _differences(summary["exact_read_with_hyper"], base)
        lines += ["", f"Trained with exact attention and read with `hyper`, the gap is {_spread(swapped, '+')}."]
    if summary["share_met"]:
        share = f"{100 * _mean(summary['share_met']):.0f} %"
        lines += ["", f"Of all pairs of a query and a key that it may see, {share} enter the estimate."]
    if summary["gradient_errors"]:
        lines += ["", *_gradient_lines(summary["gradient_errors"])]
    return "\n".join(lines)


def _gradient_lines(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| relative error of the gradient | dq | dk | dv |", "|---|---:|---:|---:|"]
    for name, layer in sorted({(error["attention"], error["layer"]) for error in errors}):
        same = [error for error in errors if (error["attention"], error["layer"]) == (name, layer)]
        cells = " | ".join(f"{_mean([error[key] for error in same]):.1e}" for key in ("dq", "dk", "dv"))
        lines.append(f"| `{name}`, layer {layer + 1} | {cells} |")
    return lines


def _spread(values: Sequence[float] | None, sign: str = "") -> str:
    """The mean, and the least and the greatest where there are several."""
    if values is None:
        return ""
    around = "" if len(values) == 1 else f" ({min(values):{sign}.3f} to {max(values):{sign}.3f})"
    return f"{_mean(values):{sign}.3f}{around}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
