"""Without pyarrow the tables are csv alone, and nothing stale stands beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hyperbench.analyze.export import export_run
from hyperbench.store import run_folder
from hyperbench.store.environment import sealed
from hyperbench.store.record_json import to_json
from hyperbench.store.tables import can_write_parquet
from tests.helpers.made_records import a_timing


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one timing, its tables written while pyarrow is here."""
    (tmp_path / run_folder.CONFIG).write_text("a: 1\n")
    (tmp_path / run_folder.ENVIRONMENT).write_text(json.dumps(sealed({"run_id": "r"})))
    (tmp_path / run_folder.JOURNAL).write_text(json.dumps(to_json(a_timing())) + "\n")
    run_folder.write_tables(tmp_path)
    assert (tmp_path / "timings.parquet").exists()
    return tmp_path


def test_tables_are_csv_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "timings.csv").read_bytes()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert not can_write_parquet()
    run_folder.write_tables(run)
    assert not list(run.glob("*.parquet"))
    assert (run / "timings.csv").read_bytes() == before


def test_an_export_that_needs_it_is_refused_in_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"parquet needs pyarrow.*allowed: csv, latex, markdown"):
        export_run(run, "parquet", None)
    assert not (run / "export").exists()
