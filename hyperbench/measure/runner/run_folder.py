"""The folder of a run: made, found again, refused where it is somebody else's or of another machine. No torch."""

from __future__ import annotations

import datetime
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.config.compose import RunConfig, differing_keys
from hyperbench.store import environment, provenance, run_folder
from hyperbench.store.files import StoreError, atomic_write_text
from hyperbench.store.journal import Journal
from hyperbench.store.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from hyperbench.measure.runner.session import Prepared


def open_folder(
    prepared: Prepared,
    out: Path | None,
    *,
    resume: bool,
    fresh: bool,
    noise: Callable[[Prepared], Mapping[str, Any]] = lambda prepared: {},
) -> Path:
    """The run's folder, made or continued, with its config.yaml and environment.json.

    `noise` is asked for further keys of the environment where a folder is made (see `session.noise_here`).
    With `resume` a named folder that is not there is made, so that the same command starts a run and goes on with it.
    Raises StoreError if the folder is foreign, holds another configuration, or cannot be written.
    """
    config = prepared.config
    if out is None and resume:
        out = _latest_of(config)
    folder = (
        out if out is not None else run_folder.RUNS_ROOT / f"{config.sweep}-{config.device.name}-{now():%Y%m%d-%H%M%S}"
    )
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"out={folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not run_folder.is_run_folder(folder) and not _was_begun(config, folder):
            raise StoreError(f"out={folder} is not empty and no run's folder; choose another out=DIR")
        if fresh:
            _remove_run(folder)
        elif run_folder.is_run_folder(folder):
            _check_same(prepared, folder, resume)
            return folder
    _make(prepared, folder, noise(prepared))
    return folder


def sweep_up(folder: Path) -> None:
    """Take away the temporary files of processes that were killed; only whoever holds the journal may."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _was_begun(config: RunConfig, folder: Path) -> bool:
    """Whether a folder holds only what a run of this configuration leaves that was killed while making it."""
    names = {path.name for path in folder.iterdir()}
    begun = {name for name in names if name.startswith((f".{run_folder.CONFIG}.", f".{run_folder.ENVIRONMENT}."))}
    written = names - begun
    return written <= {run_folder.CONFIG} and (not written or run_folder.read_config(folder) == config.resolved)


def _latest_of(config: RunConfig) -> Path:
    runs = [
        path.parent
        for path in run_folder.RUNS_ROOT.glob(f"*/{run_folder.CONFIG}")
        if run_folder.is_run_folder(path.parent)
    ]
    same = [run for run in runs if _holds(run, config)]
    if not same:
        raise StoreError(
            f"there is no run of this configuration under {run_folder.RUNS_ROOT} to resume; name it by out=DIR"
        )
    return max(same, key=lambda run: (run / run_folder.CONFIG).stat().st_mtime_ns)


def _holds(run: Path, config: RunConfig) -> bool:
    try:
        return run_folder.read_config(run) == config.resolved
    except StoreError:
        return False  # a damaged run of something else must not stand in the way


def _check_same(prepared: Prepared, folder: Path, resume: bool) -> None:
    differing = differing_keys(run_folder.read_config(folder), prepared.config.resolved)
    if differing:
        raise StoreError(
            f"out={folder} holds another configuration, which differs in {', '.join(differing)};"
            " choose another out=DIR, or --fresh to replace it"
        )
    if not resume:
        raise StoreError(f"out={folder} holds a run of this configuration; --resume continues it, --fresh replaces it")
    changed = environment.changes(run_folder.read_environment(folder), environment_of(prepared))
    if changed:
        raise StoreError(
            f"out={folder} cannot go on: its numbers come from another {' and '.join(changed)};"
            " choose another out=DIR, or --fresh to measure all again"
        )


def environment_of(prepared: Prepared, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the numbers of a run that is measured now come from, with some more keys; its run_id is new."""
    config = prepared.config
    settings = {
        "device": config.device.name,
        "device_reason": config.device.reason,
        "config_hash": config.config_hash,
        "run_id": uuid.uuid4().hex[:12],
        "started": now().isoformat(timespec="seconds"),
        "schema_version": SCHEMA_VERSION,
        **(more or {}),
    }
    if config.device.threads is not None:
        settings["threads"] = config.device.threads
    targets = {point.target for point in config.points}
    return provenance.collect(prepared.facts, settings, config.device.env, targets)


def _make(prepared: Prepared, folder: Path, more: Mapping[str, Any]) -> None:
    import yaml

    config, found = prepared.config, environment_of(prepared, more)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / run_folder.CONFIG, yaml.safe_dump(config.resolved, sort_keys=False))
        atomic_write_text(folder / run_folder.ENVIRONMENT, json.dumps(found, indent=2) + "\n")
        Journal(folder / run_folder.JOURNAL).close()
    except OSError as error:
        raise StoreError(f"out={folder} cannot be written: {error.strerror}") from None


def _remove_run(folder: Path) -> None:
    """Replace a run: the journal is held first, so that a run that is still being written is not taken away."""
    with Journal(folder / run_folder.JOURNAL):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def now() -> datetime.datetime:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC)
