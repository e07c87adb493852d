"""A run's folder: its journal (the truth) and the tables made from it.

A run's folder holds config.yaml (resolved), environment.json, journal.jsonl (a line per finished measurement) and the
tables timings and errors as .csv, and as .parquet where pyarrow is installed. The tables can always be made
again from the journal.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hyperbench.store import environment
from hyperbench.store.record_json import from_json, to_json
from hyperbench.store.schema import Record

if TYPE_CHECKING:
    from pandas import DataFrame

JOURNAL = "journal.jsonl"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
RUNS_ROOT = Path("results/runs")


class StoreError(ValueError):
    """A run's folder that cannot be read or written; the message is one line for the user."""


@dataclass(frozen=True)
class Run:
    """A run as read from its folder; the tables have the columns named in `hyperbench.store.tables`.

    `timings` has a row per point, pass, stage and round; `passes` and `stages` are its two halves.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    timings: DataFrame
    errors: DataFrame

    @property
    def passes(self) -> DataFrame:
        """The timings of whole passes."""
        return self.timings[self.timings["stage"] == ""].reset_index(drop=True)

    @property
    def stages(self) -> DataFrame:
        """The timings of stages."""
        return self.timings[self.timings["stage"] != ""].reset_index(drop=True)


class Journal:
    """The journal of a run, opened for appending; one process at a time may hold it.

    A torn last line, left by a process that was killed while writing, is cut before anything is appended.
    Raises StoreError if another process holds the journal or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise StoreError(f"cannot write the journal {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise StoreError(f"another process is writing to {path}; wait for it, or choose another out=DIR") from None
        self._cut_torn_line()
        _fsync_folder(path.parent)

    def append(self, record: Record) -> None:
        """Write one record as one line and wait until the disk has it.

        Raises StoreError if that fails; the journal is then as it was.
        """
        line = json.dumps(to_json(record), separators=(",", ":")) + "\n"
        view = memoryview(line.encode())
        size = os.fstat(self._fd).st_size
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise StoreError(
                f"cannot write the journal {self.path}: {error.strerror}; it holds what was measured before, and"
                " --resume goes on when there is room"
            ) from None

    def close(self) -> None:
        """Give the journal back; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._fd).st_size
        data = self.path.read_bytes() if size else b""
        if data and not data.endswith(b"\n"):
            os.ftruncate(self._fd, data.rfind(b"\n") + 1)
            os.fsync(self._fd)


def read_journal(path: Path) -> list[Record]:
    """Every record of a journal, in the order of writing; a torn last line is cut.

    Raises StoreError, naming file and line, on a missing file or on any other damage.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read the journal {path}: {error.strerror}") from None
    records: list[Record] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            records.append(from_json(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path}, line {number}: damaged record: {' '.join(str(error).split())}") from None
    return records


def write_tables(run: Run) -> None:
    """Write timings and errors, as .parquet and .csv, each by temporary file and rename.

    Without pyarrow there is no .parquet; one that is there from before goes, as it would be behind the journal.
    Raises StoreError if the disk does not take them.
    """
    from hyperbench.store import tables

    with_parquet = tables.can_write_parquet()
    try:
        for name in tables.TABLES:
            frame: DataFrame = getattr(run, name)
            if with_parquet:
                atomic_write(run.path / f"{name}.parquet", partial(tables.to_parquet, frame, name))
            else:
                (run.path / f"{name}.parquet").unlink(missing_ok=True)
            atomic_write(run.path / f"{name}.csv", partial(frame.to_csv, index=False))
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise StoreError(
            f"cannot write the tables of {run.path}: {reason}; the journal holds everything that was measured, and"
            " --resume makes the tables of it"
        ) from None


def load_run(run_dir: Path, records: Iterable[Record] | None = None) -> Run:
    """Read a run's folder, its tables always built from the journal, or from its records where they are at hand.

    Raises StoreError (one line) if the folder is missing, is no run's folder, or holds a damaged file.
    """
    path = check_run_folder(run_dir)
    config, found = read_config(path), read_environment(path)
    from hyperbench.store import tables

    frames = tables.build(read_journal(path / JOURNAL) if records is None else records, str(found.get("run_id") or path.resolve().name))
    return Run(path, config, found, frames["timings"], frames["errors"])


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
    import yaml

    # The loader in C is quicker, but ends the process where a file is nested deeply.
    return _read_mapping(Path(run_dir) / CONFIG, yaml.safe_load)


def read_environment(run_dir: Path) -> dict[str, Any]:
    """What produced a run's numbers. Raises StoreError if it is missing or damaged."""
    path = Path(run_dir) / ENVIRONMENT
    found = _read_mapping(path, json.loads)
    try:
        environment.checked({name: value for name, value in found.items() if name in environment.KEYS})
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    return found


def is_run_folder(path: Path) -> bool:
    """Whether a folder was made by a run (it may have been killed before its first measurement)."""
    return (path / CONFIG).is_file() and (path / ENVIRONMENT).is_file()


def latest_run(root: Path = RUNS_ROOT) -> Path:
    """The run's folder under root whose journal was written last. Raises StoreError if there is none."""
    runs = [journal.parent for journal in Path(root).glob(f"*/{JOURNAL}") if is_run_folder(journal.parent)]
    if not runs:
        raise StoreError(
            f"there is no run under {root}; make one with `hyperbench run sweep=smoke`, or name it: --run DIR"
        )
    return max(runs, key=lambda run: ((run / JOURNAL).stat().st_mtime_ns, run.name))


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside path, then move it there: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text by temporary file and rename."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a YAML parser raises whatever its constructors of numbers and dates raise
        raise StoreError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise StoreError(f"{path} is damaged: it holds no mapping")
    return data


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
