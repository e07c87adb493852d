"""A made-up run of any number of rows, written line by line: `python -m tests.helpers.large_runs 100000 DIR`.

Every shape has two methods, three passes and five rounds, and the errors of one method: half of the rows are timings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hyperbench.store.record_json import to_json
from hyperbench.store.schema import ErrorRow, Point, Record
from tests.helpers.synthetic_runs import HYPER, PASSES, exact_ms, hyper_ms, point, timing, write_run

ROUNDS = 5
SEEDS = (0, 1, 2)
METRICS = (
    "out_rel_fro", "out_row_rel_p50", "out_row_rel_p90", "out_row_rel_p99", "out_max_abs", "dq_rel_fro", "dk_rel_fro",
    "dv_rel_fro", "mean_v_rel_fro", "zero_rel_fro",
)  # fmt: skip
#: Rows of one shape: the timings of two methods, and the errors of one.
ROWS_PER_SHAPE = 2 * len(PASSES) * ROUNDS + len(SEEDS) * len(METRICS)


def records(rows: int) -> Iterator[Record]:
    """So many records, shape by shape; the shapes differ in length, masking, heads and batch."""
    return islice(_all_records(), rows)


def write_large_run(folder: Path, rows: int) -> Path:
    """The folder of a run of so many records."""
    write_run(folder, ())
    with (folder / "journal.jsonl").open("w", encoding="utf-8") as journal:
        for record in records(rows):
            journal.write(json.dumps(to_json(record), separators=(",", ":")) + "\n")
    return folder


def _all_records() -> Iterator[Record]:
    shape = 0
    while True:
        length, is_causal, size = 1024 << shape % 7, shape // 7 % 2 == 1, shape // 14
        dims = {"is_causal": is_causal, "heads": 1 + size % 16, "batch": 1 + size // 16}
        for p in (point("flash2", length, **dims), point("hyper", length, hyper=HYPER, **dims)):
            yield from _timings(p)
        yield from _errors(p)
        shape += 1


def _timings(p: Point) -> Iterator[Record]:
    cost = exact_ms if p.method == "flash2" else hyper_ms
    for round_ in range(ROUNDS):
        luck = 1.0 + 0.01 * ((7 * round_ + p.seq_len % 5 + len(p.method)) % 11)
        for pass_ in PASSES:
            yield timing(p, pass_, luck * cost(p, pass_), round=round_, conditions={"threads": 2, "cpu_mhz": 2445.0})


def _errors(p: Point) -> Iterator[Record]:
    for seed in SEEDS:
        for rank, metric in enumerate(METRICS):
            yield ErrorRow(p, seed, metric, 0.1 * (1 + rank) * (1 + 0.05 * seed))


if __name__ == "__main__":
    write_large_run(Path(sys.argv[2]), int(sys.argv[1]))
