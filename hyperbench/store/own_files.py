"""Files that hyperbench makes in a run's folder, and whether a folder is provably a run; nothing else is removed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperbench.store.files import StoreError
from hyperbench.store.journal_lines import JournalLines
from hyperbench.store.run_folder import CONFIG, ENVIRONMENT, JOURNAL, config_hash, read_config, read_environment

_FIGURES = "|".join(path.stem for path in sorted((Path(__file__).parents[1] / "analyze" / "figures").glob("[!_]*.py")))
_TABLES = r"(timings|errors|scores)\.(csv|parquet)"
_MADE_FIRST = re.compile(rf"{re.escape(CONFIG)}|{re.escape(ENVIRONMENT)}|{re.escape(JOURNAL)}")
_OWN = {
    "": re.compile(
        rf"{_MADE_FIRST.pattern}|{re.escape(JOURNAL)}\.damaged|journal\.rescued-[\dT]+\.jsonl|begun\.json"
        rf"|worker\.log(\.\d+)?|{_TABLES}"
    ),
    "figures": re.compile(rf"({_FIGURES})\.(html|png|svg|pdf)"),
    "export": re.compile(rf"{_TABLES}|summary\.(tex|md)"),
}
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")
_HEADER_BYTES = 4096


def remove_own(run_dir: Path) -> None:
    """Remove what hyperbench made in a run's folder but its journal; links are removed, and not followed.

    The configuration and the environment go last: until then they tell that the folder is a run.
    """
    first = [path for path in _own(run_dir) if path.name not in (CONFIG, ENVIRONMENT, JOURNAL)]
    for path in (*first, run_dir / CONFIG, run_dir / ENVIRONMENT):
        path.unlink(missing_ok=True)
    for name in filter(None, _OWN):
        folder = run_dir / name
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def remove_temporary(run_dir: Path) -> None:
    """Remove the temporary files of processes that were killed; only whoever holds the journal may."""
    for path in _own(run_dir):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def is_being_made(run_dir: Path, resolved: dict[str, Any]) -> bool:
    """True if a folder holds only what a run of this configuration leaves that was ended while making it."""
    names = {path.name for path in run_dir.iterdir()}
    if not all(_MADE_FIRST.fullmatch(_final(name)) for name in names) or not _nothing_measured(run_dir):
        return False
    return CONFIG not in names or read_config(run_dir) == resolved


def is_provably_run(run_dir: Path) -> bool:
    """True if the files of a folder name one and the same run, or a journal of hyperbench has just been begun."""
    run_id = _run_id_of_journal(run_dir)
    if run_id and _nothing_measured(run_dir):
        return True
    try:
        found = read_environment(run_dir)
        if run_id:
            return bool(found.get("run_id") == run_id)
        # Journals of version 1 name no run.
        return bool(found.get("run_id")) and found.get("config_hash") == config_hash(read_config(run_dir))
    except StoreError:
        return False


def _own(run_dir: Path) -> Iterator[Path]:
    for name, own in _OWN.items():
        folder = run_dir / name
        if folder.is_dir() and (not name or not folder.is_symlink()):
            for path in sorted(folder.iterdir()):
                if own.fullmatch(_final(path.name)) and (path.is_symlink() or not path.is_dir()):
                    yield path


def _final(name: str) -> str:
    """The name that a temporary file was to get; any other as it is."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else name


def _beginning(run_dir: Path) -> bytes:
    path = run_dir / JOURNAL
    if path.is_symlink() or not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES)


def _run_id_of_journal(run_dir: Path) -> str:
    lines = JournalLines([_beginning(run_dir).partition(b"\n")[0]], str(run_dir / JOURNAL))
    for _ in lines:
        pass
    return lines.run_ids[-1] if lines.run_ids else ""


def _nothing_measured(run_dir: Path) -> bool:
    """True if a journal holds its header at most, whole or torn."""
    first, newline, rest = _beginning(run_dir).partition(b"\n")
    return not first or (
        not rest and (bool(_run_id_of_journal(run_dir)) or (not newline and first.startswith(b'{"kind":"run"')))
    )
