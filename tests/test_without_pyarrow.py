"""Without pyarrow the tables are csv alone, and nothing stale stands beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from made_records import a_timing

from hyperbench import store
from hyperbench.analyze.export import export_run
from hyperbench.record_json import to_json
from hyperbench.tables import can_write_parquet


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one timing, its tables written while pyarrow is here."""
    (tmp_path / store.CONFIG).write_text("a: 1\n")
    (tmp_path / store.ENVIRONMENT).write_text('{"run_id": "r"}')
    (tmp_path / store.JOURNAL).write_text(json.dumps(to_json(a_timing())) + "\n")
    store.write_tables(tmp_path)
    assert (tmp_path / "timings.parquet").exists()
    return tmp_path


def test_tables_are_csv_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "timings.csv").read_bytes()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert not can_write_parquet()
    store.write_tables(run)
    assert not list(run.glob("*.parquet"))
    assert (run / "timings.csv").read_bytes() == before


def test_an_export_that_needs_it_is_refused_in_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"parquet needs pyarrow.*allowed: csv, latex, markdown"):
        export_run(run, "parquet", None)
    assert not (run / "export").exists()
