"""A run's folder: config.yaml (resolved), environment.json, journal.jsonl (a line per finished measurement) and tables.

The tables timings and errors, and scores of language models, are .csv, and .parquet where pyarrow is installed; they
can always be made again from the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.store import environment, tables
from hyperbench.store.files import (
    DamageWarning,
    DiskError,
    StoreError,
    atomic_write,
    check_writable,
    load_yaml,
    read_mapping,
)
from hyperbench.store.journal import each_record
from hyperbench.store.journal_lines import refuse_newer
from hyperbench.store.schema import Record

if TYPE_CHECKING:
    from pandas import DataFrame

JOURNAL = "journal.jsonl"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
LOG = "worker.log"
FIGURES = "figures"
RUNS_ROOT = Path("results/runs")


@dataclass(frozen=True)
class Run:
    """A run as read from its folder; the tables have the columns named in `hyperbench.store.tables`.

    `scores` are those of tasks of language models.

    `timings` has a row per point, pass, stage and round; `passes` and `stages` are its two halves.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    timings: DataFrame
    errors: DataFrame
    scores: DataFrame

    @property
    def passes(self) -> DataFrame:
        """The timings of whole passes."""
        return self.timings[self.timings["stage"] == ""].reset_index(drop=True)

    @property
    def stages(self) -> DataFrame:
        """The timings of stages."""
        return self.timings[self.timings["stage"] != ""].reset_index(drop=True)


def write_tables(run_dir: Path, records: Iterable[Record] | None = None) -> Run:
    """Make timings, errors and scores from the journal, as .parquet and .csv, and return the run they were made of.

    Without pyarrow there is no .parquet; one that is there from before goes, as it would be behind the journal.
    `records` are those of the journal, where they are at hand. Raises DiskError if the disk does not take them.
    """
    run = load_run(run_dir, records)
    with_parquet = tables.can_write_parquet()
    try:
        for name in tables.TABLES:
            frame: DataFrame = getattr(run, name)
            if name == "scores" and frame.empty:
                continue
            if with_parquet:
                atomic_write(run.path / f"{name}.parquet", partial(tables.to_parquet, frame))
            else:
                (run.path / f"{name}.parquet").unlink(missing_ok=True)
            atomic_write(run.path / f"{name}.csv", partial(tables.to_csv, frame))
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise DiskError(
            f"cannot write the tables of {run.path}: {reason}; the journal holds everything that was measured, and"
            " --resume makes the tables of it"
        ) from None
    return run


def check_end(run_dir: Path) -> None:
    """Raise StoreError (one line) unless all that is written at the end of a run, and its figures, can be written."""
    files = [f"{name}.{kind}" for name in tables.TABLES for kind in ("csv", "parquet")]
    check_writable(run_dir, [CONFIG, ENVIRONMENT, JOURNAL, LOG, *files])
    if (figures := run_dir / FIGURES).exists():
        check_writable(figures, ())


def load_run(run_dir: Path, records: Iterable[Record] | None = None) -> Run:
    """Read a run's folder, its tables always built from the journal, or from its records where they are at hand.

    Raises StoreError (one line) if the folder is missing, is no run's folder, or holds a damaged file.
    """
    path = check_run_folder(run_dir)
    config, found = read_config(path), read_environment(path)
    if found.get("config_hash") not in (None, config_hash(config)):
        text = f"{path / CONFIG} is not as it was written: {ENVIRONMENT} has another config_hash"
        warnings.warn(DamageWarning(text), stacklevel=2)
    named = str(found.get("run_id") or "")
    run_id = named or path.resolve().name
    if records is None:
        frames = tables.build_of_runs((of or run_id, record) for of, record in each_record(path / JOURNAL, named))
    else:
        frames = tables.build(records, run_id)
    return Run(path, config, found, frames["timings"], frames["errors"], frames["scores"])


def check_run_folder(run_dir: Path) -> Path:
    """The path of a run's folder. Raises StoreError (one line) if it is missing or is no run's folder."""
    path = Path(run_dir)
    # os.path answers where Path.is_dir raises: a name too long, a folder above that cannot be entered.
    if not os.path.isdir(path):
        raise StoreError(f"there is no run folder at {path}")
    missing = [name for name in (CONFIG, ENVIRONMENT, JOURNAL) if not (path / name).is_file()]
    if missing:
        raise StoreError(f"{path} is not a run folder: it has no {', '.join(missing)}")
    return path


def read_config(run_dir: Path) -> dict[str, Any]:
    """The resolved configuration of a run. Raises StoreError if it is missing or damaged."""
    return read_mapping(Path(run_dir) / CONFIG, load_yaml)


def config_hash(resolved: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a resolved configuration."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]


def read_environment(run_dir: Path) -> dict[str, Any]:
    """The environment that a run's numbers come from. Raises StoreError if it is missing or damaged."""
    path = Path(run_dir) / ENVIRONMENT
    found, damage = environment.unsealed(read_mapping(path, json.loads))
    if damage:
        warnings.warn(DamageWarning(f"{path} is not as it was written: {damage}"), stacklevel=2)
    try:
        environment.checked({name: value for name, value in found.items() if name in environment.KEYS})
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    refuse_newer(found.get("schema_version") or 0, str(path))
    return found


def is_run_folder(path: Path) -> bool:
    """True if a folder was made by a run (it may have been killed before its first measurement)."""
    return (path / CONFIG).is_file() and (path / ENVIRONMENT).is_file()


def made_folder(run_dir: Path, name: str) -> Path:
    """The folder of a run for what is made of it. Raises StoreError if a link is in its place."""
    folder = Path(run_dir) / name
    if folder.is_symlink():
        raise StoreError(f"{folder} is a symbolic link, and nothing is written through one; name the folder: --out DIR")
    return folder


def latest_run(root: Path = RUNS_ROOT) -> Path:
    """The run's folder under root whose journal was written last. Raises StoreError if there is none."""
    runs = [journal.parent for journal in Path(root).glob(f"*/{JOURNAL}") if is_run_folder(journal.parent)]
    if not runs:
        raise StoreError(
            f"there is no run under {root}; make one with `hyperbench run sweep=smoke`, or name it: --run DIR"
        )
    return max(runs, key=lambda run: ((run / JOURNAL).stat().st_mtime_ns, run.name))
