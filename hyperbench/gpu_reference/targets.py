"""The speedups that the kernels are meant to reach on an H100, beside what a run has measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SEQ_LEN = 131072


@dataclass(frozen=True)
class Target:
    """At n = 131,072, 12 heads, head_dim 64, b = m = 256, bfloat16, forward: the least speedup, and where it leads."""

    baseline: str
    is_causal: bool
    at_least: float
    on_the_way_to: float | None = None


TARGETS = (
    Target("flash2", False, 120, 230),
    Target("flash2", True, 20, 37),
    Target("cudnn", False, 90),
    Target("cudnn", True, 15),
)


def lines(run_dir: Path) -> list[str]:
    """One line for each target: the speedup measured at the target's length, or that there is none."""
    from hyperbench.analyze.joins import add_speedup
    from hyperbench.store.run_folder import load_run

    timings = load_run(run_dir).passes
    found = []
    for target in TARGETS:
        rows = add_speedup(timings, target.baseline).query(
            "method == 'hyper' and seq_len == @SEQ_LEN and `pass` == 'forward'"
        )
        rows = rows[rows["is_causal"] == target.is_causal]
        speedups = rows["speedup"].dropna()
        measured = f"{speedups.iloc[0]:.1f}x" if len(speedups) else "not measured"
        wanted = f"{target.at_least:g}x" + (
            f", on the way to {target.on_the_way_to:g}x" if target.on_the_way_to else ""
        )
        masking = "causal" if target.is_causal else "not causal"
        found.append(f"forward, {masking}, n = {SEQ_LEN:,}, over {target.baseline}: {measured} (target {wanted})")
    return found
