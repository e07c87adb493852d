"""Measurement of a prepared run in its folder, from the journal to the tables. No torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from hyperbench.measure.runner.interrupts import AtOnce
from hyperbench.measure.runner.outcome import Listener, Outcome
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.runner.runner import Runner
from hyperbench.measure.runner.worker_process import ATTENTION_WORKER, MODEL_WORKER, Child, WorkerProcess
from hyperbench.measure.tries import FILE, Tries
from hyperbench.store import run_folder
from hyperbench.store.files import StoreError
from hyperbench.store.journal import Journal, JournalLostError
from hyperbench.store.own_files import remove_temporary


def measure(
    prepared: Prepared,
    journal: Journal,
    listener: Listener,
    *,
    retry_failed: bool = False,
    start: Callable[[float], object] = float,
    spawn: Callable[[dict[str, str], Path], Child] | None = None,
) -> Outcome:
    """Measure what a run's journal lacks, close it, and write the tables beside it. Raises StoreError or MeasureError.

    `start` is called, before the first point, with the seconds that the whole is likely to take. `spawn` starts a
    worker process under some environment variables, one of its own for a test; its output goes to the file.
    """
    folder = journal.path.parent
    is_model = any(point.is_task for point in prepared.points)
    module = MODEL_WORKER if is_model else ATTENTION_WORKER
    start_worker = spawn or partial(WorkerProcess, targets=prepared.config.targets, module=module)

    def worker() -> Child:
        return start_worker(prepared.config.device.env, folder / run_folder.LOG)

    with journal:
        run_folder.check_end(folder)
        remove_temporary(folder)
        runner = Runner(
            prepared, journal, worker, listener,
            history=journal.records, tries=Tries(folder / FILE), retry_failed=retry_failed,
        )  # fmt: skip
        start(runner.remaining_s())
        try:
            outcome = runner.run()
        except (AtOnce, JournalLostError):
            raise
        except BaseException:
            # What went wrong is told; that the tables cannot be written for the same reason is not.
            with suppress(StoreError):
                run_folder.write_tables(folder, runner.outcome.records)
            raise
        journal.check()
        runner.time.switch("tables")
        outcome.run = run_folder.write_tables(folder, outcome.records)
        outcome.time = runner.time.report()
        return outcome
