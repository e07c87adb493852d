"""Real workers: a small run to its end, a method that takes its process along, and a run whose parent is killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperbench.measure import work_items
from hyperbench.measure.runner import session
from hyperbench.measure.runner.open_run import open_folder
from hyperbench.measure.runner.prepare import Prepared, prepare
from hyperbench.measure.runner.worker_process import Child
from hyperbench.store.journal import read_journal
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import ErrorRow, Record, Status, Timing
from tests.helpers.fake_worker import Listener
from tests.helpers.made_runs import TINY, everything

pytestmark = pytest.mark.slow

HELPERS = Path(__file__).parents[2] / "helpers"
WORDS = (
    *TINY,
    "shape.seq_len=64",
    "method=[math,hyper]",
    "+method.dies._target_=tests.helpers.odd_methods.kills_its_process",
)
HANGING = (
    *TINY,
    "shape.seq_len=64,128",
    "method=math",
    "+method.hangs._target_=tests.helpers.odd_methods.hangs_at_128",
)
STAGED = (
    *TINY, "shape.seq_len=64", "method=hyper", "method.hyper.min_seq_len=16", "method.hyper.block_size=16",
    "method.hyper.sample_size=16", "passes=[forward]", "stages=true",
    "+method.dies._target_=tests.helpers.odd_methods.staged_kills",
)  # fmt: skip
#: Far more than the kernel needs to end a process; only a failure waits so long.
PATIENCE_S = 120


@dataclass
class Finished:
    """A run that has come to its end."""

    prepared: Prepared
    folder: Path
    listener: Listener
    outcome: session.Outcome


def measured(folder: Path, *words: str, resume: bool = False) -> Finished:
    """A run of these words, to its end."""
    prepared, listener = prepare(words), Listener()
    opened = open_folder(prepared, folder, resume=resume)
    outcome = session.measure(prepared, opened, listener, retry_failed=False)
    return Finished(prepared, folder, listener, outcome)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A small run, one of whose methods kills its process."""
    return measured(tmp_path_factory.mktemp("a run") / "deep" / "folder", *WORDS)


def expected_keys(prepared: Prepared) -> set[work_items.Key]:
    """The keys of everything that a run is to measure."""
    return {record.key for record in everything(prepared, [0]) if isinstance(record, Timing | ErrorRow)}


def keys(records: list[Record]) -> list[work_items.Key]:
    """The keys of records that have one and are expected of every method."""
    return [r.key for r in records if isinstance(r, Timing) or (isinstance(r, ErrorRow) and r.metric != "lse_mean_abs")]


def test_everything_is_in_the_journal_and_in_the_tables(finished: Finished) -> None:
    records = read_journal(finished.folder / "journal.jsonl")
    assert set(keys(records)) == expected_keys(finished.prepared)
    run = load_run(finished.folder)
    assert len(run.timings) == 3 * 3
    assert {p.name for p in finished.folder.iterdir()} >= {
        f"{table}.{kind}" for table in ("timings", "errors") for kind in ("csv", "parquet")
    }
    assert run.config == finished.prepared.config.resolved
    assert run.environment["config_hash"] == finished.prepared.config.config_hash
    assert set(run.timings["run_id"]) == {run.environment["run_id"]}


def test_a_method_that_takes_its_process_along_is_alone_in_that(finished: Finished) -> None:
    timings = load_run(finished.folder).timings.set_index("method")
    assert set(timings.loc[["math", "hyper"], "status"]) == {"ok"}
    assert set(timings.loc["dies", "status"]) == {"oom"}
    assert timings.loc["dies", "message"].str.contains("SIGKILL").all()
    assert timings.loc["dies", "median_ms"].isna().all()
    assert finished.outcome.statuses == {Status.OK: 6, Status.OOM: 3}


def test_times_are_positive_and_say_how_they_were_taken(finished: Finished) -> None:
    timings = load_run(finished.folder).timings
    ok = timings[timings["status"] == "ok"]
    assert (ok["median_ms"] > 0).all()
    assert ok["n_samples"].between(2, 3).all()
    assert ok["stop_reason"].isin(["precision", "budget", "max_samples"]).all()
    assert ok["implementation"].str.len().gt(0).all()
    assert set(ok["implementation"].str.split("-").str[0]) == {"torch", "hyperattn"}
    assert (ok["exact_equivalent_flops"] > 0).all()


def test_errors_are_there_for_every_seed_and_are_small_where_exact(finished: Finished) -> None:
    errors = load_run(finished.folder).errors
    good = errors[errors["method"] != "dies"]
    assert set(good["status"]) == {"ok"}
    values = good.set_index(["method", "metric", "seed"])["value"]
    # 64 keys are fewer than min_seq_len: HyperAttention is exact attention here.
    for metric in ("out_rel_fro", "dq_rel_fro", "dk_rel_fro", "dv_rel_fro", "out_rel_op"):
        assert values["math", metric, 0] < 1e-5
        assert [values["hyper", metric, seed] < 1e-5 for seed in (0, 1)] == [True, True]
    assert values["hyper", "lse_mean_abs", 0] < 1e-5
    assert values["math", "zero_rel_fro", 0] == 1
    assert set(errors[errors["method"] == "dies"]["status"]) == {"oom"}


def test_progress_adds_up_to_the_estimate(finished: Finished) -> None:
    assert finished.listener.cost_s == pytest.approx(sum(finished.prepared.estimates_s()))
    assert any("hyper" in label for label in finished.listener.labels)


def test_a_finished_run_starts_no_worker(finished: Finished) -> None:
    def no_worker(env: object, log: object) -> Child:
        raise AssertionError("a worker was started")

    before = (finished.folder / "journal.jsonl").read_bytes()
    folder = open_folder(finished.prepared, finished.folder, resume=True)
    outcome = session.measure(finished.prepared, folder, Listener(), spawn=no_worker)
    assert not outcome.statuses
    assert (finished.folder / "journal.jsonl").read_bytes() == before


def child_of(pid: int) -> int:
    """The process whose parent is pid."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"PPid:\t{pid}\n" in text:
            return int(status.parent.name)
    raise AssertionError(f"process {pid} has no child")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the worker of a dead parent on Linux")
def test_a_killed_run_takes_its_worker_along_and_goes_on_without_loss(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(HELPERS / "run_in_a_process.py"), str(folder), *HANGING],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "ODD_HANGS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout as lines:
        assert any("n=128" in line and "hangs" in line for line in lines), "the run never came to the method that hangs"
        worker = os.pidfd_open(child_of(process.pid))
        process.kill()
        process.wait()
    gone, _, _ = select.select([worker], [], [], PATIENCE_S)
    if not gone:
        signal.pidfd_send_signal(worker, signal.SIGKILL)
    os.close(worker)
    assert gone, "the worker outlived its parent"

    before = (folder / "journal.jsonl").read_bytes()
    records = read_journal(folder / "journal.jsonl")
    assert {r.point.seq_len for r in records if isinstance(r, Timing)} == {64}
    assert len([r for r in records if isinstance(r, Timing)]) == 6

    rest = measured(folder, *HANGING, resume=True)
    assert (folder / "journal.jsonl").read_bytes().startswith(before)
    after = read_journal(folder / "journal.jsonl")
    assert set(keys(after)) == expected_keys(rest.prepared)
    assert rest.outcome.statuses == {Status.OK: 6}
    assert set(load_run(folder).timings["status"]) == {"ok"}


def test_stages_that_take_their_process_along_leave_the_others_and_the_passes(tmp_path: Path) -> None:
    done = measured(tmp_path / "run", *STAGED)
    run = load_run(done.folder)
    assert set(run.passes["status"]) == {"ok"}
    hyper = run.stages[run.stages["method"] == "hyper"].sort_values("position")
    assert list(hyper["stage"]) == ["hash", "probe", "sort", "sample", "attend", "mean_keys"]
    assert (hyper["median_ms"] > 0).all()
    assert (hyper["num_stages"] == 6).all()
    dies = run.stages[run.stages["method"] == "dies"].set_index("stage")
    assert dies.loc["all", "status"] == "oom"
    assert "SIGKILL" in dies.loc["all", "message"]
    before = (done.folder / "journal.jsonl").read_bytes()
    again = measured(done.folder, *STAGED, resume=True)
    assert not again.outcome.stage_statuses
    assert (done.folder / "journal.jsonl").read_bytes() == before
