"""Workers, journals and folders that come to harm: the rest goes on, and the row or the refusal says what happened."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperbench.child.code import Code
from hyperbench.measure.messages import Unit, Work
from hyperbench.measure.runner import worker_process
from hyperbench.measure.runner.open_run import open_folder
from hyperbench.measure.runner.runner import MeasureError
from hyperbench.measure.runner.worker_process import WorkerGone
from hyperbench.measure.tries import Tries
from hyperbench.store import run_folder
from hyperbench.store.environment import sealed
from hyperbench.store.files import DamageWarning, StoreError
from hyperbench.store.journal import Journal, read_journal
from hyperbench.store.journal_lines import line_of
from hyperbench.store.record_json import to_json
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Pass, Status, Timing
from tests.helpers.fake_worker import FakeWorker, Fate, Site, dies, hangs
from tests.helpers.made_records import a_timing
from tests.helpers.made_runs import tiny
from tests.helpers.quoted import Quote
from tests.helpers.scripted_worker import Scripted

SIGKILL, SIGSEGV = -9, -11


def end_of_a_worker(fate: Fate) -> dict[str, set[str]]:
    """Status -> messages of the timings of a run in which a worker comes to this end at the first length of hyper."""
    site = Site(tiny("shape.seq_len=64,128,256", "method=[math,hyper]"), fate)
    site.run()
    assert set(site.keys) == site.expected
    assert len(site.keys) == len(set(site.keys))
    found: dict[str, set[str]] = {}
    for record in site.journal.records:
        if isinstance(record, Timing):
            assert (record.status is Status.OK) or record.point.method == "hyper"
            found.setdefault(str(record.status), set()).add(record.message)
    return found


def test_a_killed_worker_is_want_of_memory_and_longer_points_are_not_tried() -> None:
    found = end_of_a_worker(dies(SIGKILL, unit="check", method="hyper", seq_len=64))
    assert set(found) == {"ok", "oom", "skipped_after_oom"}
    assert all("SIGKILL" in message for message in found["oom"])
    assert found["skipped_after_oom"] == {"not tried: it ran out of memory at seq_len=64"}


def test_a_crashed_interpreter_is_a_row_that_says_so() -> None:
    found = end_of_a_worker(dies(SIGSEGV, unit="check", method="hyper", seq_len=64))
    assert set(found) == {"ok", "error"}
    assert all("SIGSEGV" in message for message in found["error"])


def test_a_worker_that_hangs_is_ended_and_the_row_says_after_how_long() -> None:
    limit_s = tiny().config.protocol.timeout_s
    found = end_of_a_worker(hangs(unit="time", method="hyper", seq_len=64))
    assert set(found) == {"ok", "timeout"}
    assert found["timeout"] == {f"time: took longer than {limit_s:g} s"}


@pytest.mark.parametrize(
    ("script", "quote"),
    [
        ("os.close(write_fd); os._exit(0) if os.fork() else time.sleep(600)",
         Quote("the worker process ended with exit code 0")),
        ("os.closerange(3, 256); time.sleep(600)",
         Quote("the measured code closed the pipe between the worker process and its parent")),
        ("say('progress: 50%\\n'); time.sleep(600)",
         Quote("the measured code wrote to the pipe between the worker process and its parent: 'progress: 50%")),
    ],
)  # fmt: skip
def test_a_worker_whose_pipe_is_misused_is_ended_with_all_that_it_started(
    script: str, quote: Quote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "script", f"say(READY); {script}")
    monkeypatch.setattr(worker_process, "_GRACE_S", 0.5)
    worker = Scripted({}, tmp_path / "log")
    worker.receive(60.0)
    with pytest.raises(WorkerGone) as gone:
        worker.receive(60.0)
    worker.end()
    assert quote.stands_in(str(gone.value))


def test_a_log_that_a_method_fills_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"progress\n" * 2_000_000)
    worker_process.bound_log(log)
    assert log.stat().st_size < worker_process.LOG_LIMIT_BYTES
    assert Quote("[output left out: the log keeps its beginning and its end]").stands_in(log.read_text())


def test_code_that_was_changed_while_a_run_goes_on_is_not_measured() -> None:
    run, files = tiny("shape.seq_len=64", "method=[math]"), {"hyperbench": "/a", "hyperattn_core": "/b"}
    run = replace(run, facts={**run.facts, "code": "0123456789ab", "files": files})
    with pytest.raises(MeasureError) as refused:
        Site(run, make=lambda: FakeWorker(code=Code("ba9876543210", files))).run()
    assert Quote("a worker process runs other code than this run was begun with: "
                 "the code has changed since the run began").stands_in(str(refused.value))  # fmt: skip


LINES = [line_of(to_json(a_timing(round=r))) for r in range(3)]


def a_run(folder: Path, journal: bytes) -> Path:
    """A run's folder with this journal."""
    folder.mkdir()
    (folder / run_folder.CONFIG).write_text("sweep: {}\n")
    (folder / run_folder.ENVIRONMENT).write_text(json.dumps(sealed({})))
    (folder / run_folder.JOURNAL).write_bytes(journal)
    return folder


def test_a_torn_last_line_costs_that_line(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", b"".join(LINES)[:-20])
    with pytest.warns(DamageWarning, match="line 3: damaged record: its end is missing"):
        assert list(load_run(folder).timings["round"]) == [0, 1]
    with pytest.warns(DamageWarning), Journal(folder / run_folder.JOURNAL) as journal:
        journal.append(a_timing(round=7))
    assert list(load_run(folder).timings["round"]) == [0, 1, 7]


@pytest.mark.parametrize(
    "damage", [b"\n", LINES[1][:-20] + b"\n", LINES[1].replace(b'"round":1', b'"round":2'), b"\0" * 64 + b"\n"]
)
def test_any_other_damage_costs_its_line_and_is_told(damage: bytes, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", LINES[0] + damage + LINES[2])
    with pytest.warns(DamageWarning) as read:
        assert list(load_run(folder).timings["round"]) == [0, 2]
    said = Quote("journal.jsonl is damaged; what is left out: line 2: damaged record: ...; --resume measures it again")
    assert said.stands_in(str(read[0].message))
    with pytest.warns(DamageWarning) as written, Journal(folder / run_folder.JOURNAL):
        pass
    said = Quote("a damaged line of ... moved to journal.jsonl.damaged; what is missing now is measured again")
    assert said.stands_in(str(written[0].message))
    assert (folder / run_folder.JOURNAL).read_bytes() == LINES[0] + LINES[2]
    assert (folder / "journal.jsonl.damaged").read_bytes() == damage


def test_a_journal_of_a_newer_hyperbench_is_refused_as_newer(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", LINES[0] + line_of({**to_json(a_timing()), "colour": "blue"}))
    with pytest.raises(StoreError) as refused:
        load_run(folder)
    said = Quote("journal.jsonl, line 2: made by a newer hyperbench: ...; update hyperbench")
    assert said.stands_in(str(refused.value))


def test_a_full_disk_is_one_line_and_the_journal_ends_with_a_whole_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / run_folder.JOURNAL
    space_left = 50
    write = os.write

    def fills(fd: int, data: Any) -> int:
        nonlocal space_left
        if space_left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(fd, bytes(data)[:space_left])
        space_left -= done
        return done

    with Journal(path) as journal:
        journal.append(a_timing(round=0))
        monkeypatch.setattr(os, "write", fills)
        with pytest.raises(StoreError) as refused:
            journal.append(a_timing(round=1))
    assert Quote("cannot write the journal ...: No space left on device; it holds what was measured before, and "
                 "--resume goes on when there is space").stands_in(str(refused.value))  # fmt: skip
    assert read_journal(path) == [a_timing(round=0)]


def test_a_foreign_folder_is_neither_read_nor_written(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"is not a run folder: it has no config\.yaml, environment\.json, journal"):
        load_run(folder)
    for resume, fresh in ((False, False), (True, False), (False, True)):
        with pytest.raises(StoreError, match="is not empty and no run's folder; choose another out=DIR"):
            open_folder(tiny(), folder, resume=resume, fresh=fresh)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_a_folder_of_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    open_folder(tiny(), folder).close()
    with pytest.raises(StoreError, match=r"shape\.seq_len"):
        open_folder(tiny("shape.seq_len=64"), folder, resume=True)


def test_a_folder_that_only_looks_like_a_run_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = a_run(Path("app"), b"")
    with pytest.raises(StoreError) as refused:
        open_folder(tiny(), app, fresh=True)
    said = Quote("out=app is not provably a run: ...; --fresh removes nothing there")
    assert said.stands_in(str(refused.value))
    assert len(list(app.iterdir())) == 3


def test_a_journal_that_is_deleted_while_it_is_written_is_kept_beside_it(tmp_path: Path) -> None:
    with Journal(tmp_path / run_folder.JOURNAL) as journal:
        journal.append(a_timing())
        journal.path.unlink()
        with pytest.raises(StoreError) as refused:
            journal.append(a_timing(round=1))
    said = Quote("the journal ... was deleted by something else while the run went on; what it held is in ... now; "
                 "with that in its place --resume goes on")  # fmt: skip
    assert said.stands_in(str(refused.value))
    assert len(list(tmp_path.glob("journal.rescued-*.jsonl"))) == 1


def test_a_disk_without_locks_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(StoreError) as refused:
        open_folder(tiny(), tmp_path / "run")
    said = Quote("the file system of ... has no locks (No locks available), so that nothing would keep a second run "
                 "out; choose out=DIR on another one")  # fmt: skip
    assert said.stands_in(str(refused.value))


def test_what_took_the_whole_job_down_twice_is_a_row(tmp_path: Path) -> None:
    run, path = tiny("shape.seq_len=64", "method=[hyper]", "passes=[forward]"), tmp_path / "begun.json"
    (point,) = run.points
    for _ in range(2):
        Tries(path).begin(0, point.point_id, Unit(Work.TIME, point.point_id, Pass.FORWARD))
    site = Site(run)
    site.run(tries=Tries(path))
    said = Quote("oom: time: the run ended here twice, its own process together with the worker process, most likely "
                 "for want of memory; --resume --retry-failed tries it again")  # fmt: skip
    rows = [r for r in site.journal.records if isinstance(r, Timing)]
    assert [said.stands_in(f"{row.status}: {row.message}") for row in rows] == [True]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", LINES[0])
    for name in ("errors.csv", "figures"):
        (folder / name).symlink_to(tmp_path)
    with pytest.raises(StoreError) as refused:
        run_folder.write_tables(folder)
    assert Quote("a symbolic link is in its place, and none is written through").stands_in(str(refused.value))
    with pytest.raises(StoreError) as refused:
        run_folder.made_folder(folder, "figures")
    said = Quote("figures is a symbolic link, and nothing is written through one; name the folder: --out DIR")
    assert said.stands_in(str(refused.value))


def test_a_configuration_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", b"")
    grows = "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))
    (folder / run_folder.CONFIG).write_text(f"a0: &a0 {{x: 1}}\n{grows}")
    with pytest.raises(StoreError) as refused:
        load_run(folder)
    said = Quote("config.yaml is damaged: its aliases make it endless, or longer than 200,000 values")
    assert said.stands_in(str(refused.value))
