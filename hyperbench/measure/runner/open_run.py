"""The folder of a run: made, found again, refused if it is somebody else's or of another environment. No torch."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperbench.config.compose import RunConfig, differing_keys
from hyperbench.measure.runner.noise_floor import noise_of_run
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.store import environment, own_files, provenance, run_folder
from hyperbench.store.files import StoreError, write_new_text
from hyperbench.store.journal import Journal
from hyperbench.store.schema import SCHEMA_VERSION


def open_folder(prepared: Prepared, out: Path | None, *, resume: bool = False, fresh: bool = False) -> Journal:
    """The journal of the run's folder, locked, with config.yaml and environment.json beside it, made or found there.

    Nothing else is written before the lock is held. Where the folder is made, the noise of this machine is measured
    (see noise_of_run). With `resume` a named folder that is not there is made, so that the same command starts a run
    and goes on with it; with `fresh` what hyperbench made of a run is removed, and nothing else.
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
    _check_ours(config, folder, fresh)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"out={folder} cannot be written: {error.strerror}") from None
    journal = Journal(folder / run_folder.JOURNAL)
    try:
        _check_ours(config, folder, fresh)  # others may have changed it before the lock was taken
        if fresh or not run_folder.is_run_folder(folder):
            _make(prepared, journal, fresh)
        else:
            _check_same(prepared, folder, resume)
            journal.begin(str(run_folder.read_environment(folder).get("run_id") or ""))
    except BaseException:
        journal.close()
        raise
    return journal


def _check_ours(config: RunConfig, folder: Path, fresh: bool) -> None:
    """Raise StoreError if a folder is foreign, or if what is in it may not be replaced."""
    if not folder.is_dir() or own_files.is_being_made(folder, config.resolved):
        return
    is_run = own_files.is_provably_run(folder)
    if not run_folder.is_run_folder(folder) and not (fresh and is_run):
        raise StoreError(f"out={folder} is not empty and no run's folder; choose another out=DIR")
    if fresh and not is_run:
        raise StoreError(
            f"out={folder} is not provably a run: its {run_folder.ENVIRONMENT} is not of the same run as its"
            f" {run_folder.JOURNAL} or {run_folder.CONFIG}; --fresh removes nothing there: choose another out=DIR"
        )


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
    _check_unchanged(folder, environment_of(prepared))


def _check_unchanged(folder: Path, here: Mapping[str, Any]) -> None:
    there = run_folder.read_environment(folder)
    changed = environment.changes(there, here, (*environment.RESUME_KEYS, "config_hash"))
    if changed:
        raise StoreError(
            f"out={folder} cannot go on: its numbers come from another {' and '.join(changed)};"
            " choose another out=DIR, or --fresh to measure all again"
        )


def environment_of(prepared: Prepared, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The environment of a run that is measured now, with some more keys; its run_id is new."""
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
    return provenance.collect(prepared.facts, settings, config.device.env, config.targets)


def _make(prepared: Prepared, journal: Journal, fresh: bool) -> None:
    """Write the configuration and the environment of a new run, in the place of another one if it is to be `fresh`."""
    import yaml

    folder, config = journal.path.parent, prepared.config
    found = environment_of(prepared, noise_of_run(prepared))
    try:
        if fresh:
            journal.restart(found["run_id"])
            own_files.remove_own(folder)
        if (folder / run_folder.ENVIRONMENT).exists():  # of a run that was ended while it was made
            _check_unchanged(folder, found)
            found = run_folder.read_environment(folder)
        else:
            write_new_text(folder / run_folder.ENVIRONMENT, json.dumps(environment.sealed(found), indent=2) + "\n")
        journal.begin(found["run_id"])
        if not (folder / run_folder.CONFIG).exists():
            write_new_text(folder / run_folder.CONFIG, yaml.safe_dump(config.resolved, sort_keys=False))
    except FileExistsError:
        raise StoreError(f"out={folder} is being made by another hyperbench; choose another out=DIR") from None
    except OSError as error:
        raise StoreError(f"out={folder} cannot be written: {error.strerror}") from None


def now() -> datetime.datetime:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC)
