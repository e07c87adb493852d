"""Folders that hold journals of several runs, as somebody puts them together by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hyperbench.store.journal_lines import header_of, line_of
from hyperbench.store.record_json import to_json
from hyperbench.store.schema import Record
from tests.helpers.synthetic_runs import GPU_LENGTHS, grid, write_run

LENGTHS = GPU_LENGTHS[:2]


def records(slowed: float, methods: tuple[str, ...] = ("flash2", "hyper"), **conditions: Any) -> list[Record]:
    """Two methods on a machine that takes `slowed` times as long."""
    return grid(
        LENGTHS,
        methods,
        masks=(False,),
        change=lambda t: dataclasses.replace(
            t, samples_ms=tuple(slowed * ms for ms in t.samples_ms), conditions=conditions
        ),
    )


def put_together(folder: Path, *runs: tuple[str, Iterable[Record]]) -> Path:
    """A folder with the environment of the first run and the journals of all."""
    write_run(folder, (), {"run_id": runs[0][0]})
    with (folder / "journal.jsonl").open("wb") as file:
        for run_id, of_run in runs:
            file.write(header_of(run_id))
            file.writelines(line_of(to_json(record)) for record in of_run)
    return folder
