"""Journals: what was appended is read, damage costs the line it is in, and a second writer is kept out."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperbench.store import journal_lines, run_folder
from hyperbench.store.files import DamageWarning, StoreError
from hyperbench.store.journal import DAMAGED_SUFFIX, Journal, JournalLostError, read_journal
from hyperbench.store.journal_lines import header_of, line_of
from hyperbench.store.record_json import to_json
from hyperbench.store.schema import SCHEMA_VERSION, ErrorRow, Record, Status
from tests.helpers.made_records import a_point, a_stage, a_timing, records

SOME: list[Record] = [
    a_timing(),
    a_timing(a_point(hyper={}), status=Status.OOM, samples_ms=(), stop_reason=None, message='no "memory", sorry'),
    ErrorRow(a_point(), 3, "out_rel_fro", float("inf")),
    a_stage(a_point(), "hash", 0.25),
]  # fmt: skip
LINES = [line_of(to_json(record)) for record in SOME]
OLD_LINES = [json.dumps(to_json(record)).encode() + b"\n" for record in SOME]


def told(path: Path) -> tuple[list[Record], str]:
    """The records of a journal, and the warning of what is left out of it, or ""."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_journal(path)
    return found, "; ".join(str(one.message) for one in caught)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The place of a journal."""
    return tmp_path / run_folder.JOURNAL


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(records(), max_size=4))
def test_what_was_appended_is_read_in_order(written: list[Record], tmp_path: Path) -> None:
    path = tmp_path / run_folder.JOURNAL
    path.unlink(missing_ok=True)
    half = len(written) // 2
    for part in (written[:half], written[half:]):
        with Journal(path) as journal:
            for record in part:
                journal.append(record)
    assert list(map(repr, read_journal(path))) == list(map(repr, written))


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    path = tmp_path / run_folder.JOURNAL
    with Journal(path) as first:
        first.append(SOME[0])
        with pytest.raises(StoreError, match="another process is writing"):
            Journal(path)
        first.append(SOME[2])
    with Journal(path) as second:
        second.append(SOME[3])
    assert read_journal(path) == [SOME[0], SOME[2], SOME[3]]


def test_the_journal_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    path = tmp_path / run_folder.JOURNAL
    program = (
        "import os, signal, sys; from pathlib import Path; from hyperbench.store.journal import Journal;"
        "journal = Journal(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    with Journal(path) as journal:
        journal.append(SOME[0])
    assert read_journal(path) == [SOME[0]]


def test_a_failed_append_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / run_folder.JOURNAL
    write = os.write

    def fills_up(fd: int, data: memoryview) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "no memory left on device")
        return write(fd, data[:-50])

    with Journal(path) as journal:
        journal.append(SOME[0])
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fills_up)
            with pytest.raises(StoreError, match=r"cannot write .*no memory left"):
                journal.append(SOME[2])
        assert read_journal(path) == [SOME[0]]
        assert path.read_bytes().endswith(b"\n")
        journal.append(SOME[3])
    assert read_journal(path) == [SOME[0], SOME[3]]


def test_a_journal_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write the journal"):
        Journal(tmp_path)
    with pytest.raises(StoreError, match="cannot write the journal"):
        Journal(tmp_path / "missing" / "journal.jsonl")
    with pytest.raises(StoreError, match="cannot read the journal"):
        read_journal(tmp_path / "missing")


@pytest.mark.parametrize("lines", [LINES, OLD_LINES], ids=["checked", "old"])
def test_a_torn_last_line_is_told_and_a_whole_one_without_its_newline_counts(lines: list[bytes], path: Path) -> None:
    whole = b"".join(lines)
    ends = [len(b"".join(lines[: count + 1])) for count in range(len(lines))]
    for cut in sorted({*range(0, len(whole), 11), *(end + near for end in ends for near in (-3, -2, -1, 0))}):
        path.write_bytes(whole[:cut])
        found, warning = told(path)
        ends_whole = any(whole[:cut].endswith(line[:-1]) for line in lines)
        assert found == SOME[: whole[:cut].count(b"\n") + ends_whole]
        is_torn = bool(cut) and not ends_whole and whole[cut - 1 : cut] != b"\n"
        assert ("its end is missing" in warning) == is_torn == bool(warning)


@pytest.mark.parametrize("lines", [LINES, OLD_LINES], ids=["checked", "old"])
@pytest.mark.filterwarnings("ignore::hyperbench.store.files.DamageWarning")
def test_a_journal_torn_anywhere_can_be_appended_to(lines: list[bytes], path: Path) -> None:
    aside = path.with_name(path.name + DAMAGED_SUFFIX)
    for cut in (*range(0, len(lines[3]) - 3, 23), *range(len(lines[3]) - 3, len(lines[3]) + 1)):
        path.write_bytes(lines[0] + lines[3][:cut])
        aside.unlink(missing_ok=True)
        with Journal(path) as journal:
            is_whole = cut >= len(lines[3]) - 1
            assert journal.records == [SOME[0], *([SOME[3]] if is_whole else [])]
            journal.append(SOME[2])
        assert told(path) == ([SOME[0], *([SOME[3]] if is_whole else []), SOME[2]], "")
        assert (aside.read_bytes() if aside.exists() else b"") == (
            lines[3][:cut] + b"\n" if cut > 0 and not is_whole else b""
        )


def test_a_flipped_bit_costs_its_line_at_most_and_never_changes_a_value(path: Path) -> None:
    whole = header_of("r1") + b"".join(LINES)
    chance = random.Random(0)
    newlines = [at for at in range(len(whole)) if whole[at : at + 1] == b"\n"]
    for at in sorted({*range(0, len(whole), 5), *newlines}):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        found, warning = told(path)
        number = whole[:at].count(b"\n")
        on_a_newline = whole[at : at + 1] == b"\n"
        lost = [] if on_a_newline or number == 0 else [SOME[number - 1]]
        assert found == [record for record in SOME if record not in lost]
        assert f"line {number + 1}: damaged record" in warning or on_a_newline


def test_whole_lines_run_together_are_all_read(path: Path) -> None:
    torn = LINES[1][:-30]
    path.write_bytes(LINES[0][:-1] + b"?" + LINES[1][:-1] + LINES[2] + torn + LINES[3])
    found, warning = told(path)
    assert found == SOME
    assert "line 2: damaged record" in warning
    assert "line 1" not in warning


def test_a_damaged_line_is_told_with_what_it_was(path: Path) -> None:
    path.write_bytes(LINES[0] + LINES[1].replace(b"1024", b"1025", 1) + LINES[2] + LINES[3].replace(b"hash", b"rash"))
    found, warning = told(path)
    assert found == [SOME[0], SOME[2]]
    assert "line 2: damaged record: its checksum is" in warning
    assert "most likely kind=timing method=hyper seq_len=1025 pass=forward round=0; line 4" in warning
    assert warning.endswith("--resume measures it again")


def test_many_damaged_lines_are_one_short_line(path: Path) -> None:
    path.write_bytes(b"".join(line.replace(b"strict", b"loose") for line in LINES * 300))
    found, warning = told(path)
    assert (found, warning.count("damaged record")) == ([SOME[2]] * 300, 5)
    assert "and 895 more" in warning
    assert len(warning) < 2000


def test_a_line_without_a_checksum_stands_in_no_journal_that_has_them(path: Path) -> None:
    path.write_bytes(header_of("r1") + OLD_LINES[0] + LINES[2])
    found, warning = told(path)
    assert found == [SOME[2]]
    assert "line 2: damaged record: it has no checksum" in warning


def test_damaged_lines_are_set_aside_before_anything_is_written(path: Path) -> None:
    damaged = LINES[1].replace(b"1024", b"1025", 1)
    path.write_bytes(header_of("r1") + LINES[0] + damaged + LINES[2])
    journal = Journal(path)
    with pytest.warns(DamageWarning, match=r"a damaged line of .* moved to journal\.jsonl\.damaged; what is missing"):
        journal.__enter__()
    with journal:
        assert journal.records == [SOME[0], SOME[2]]
        with pytest.raises(StoreError, match="another process is writing"):
            Journal(path)
        journal.append(SOME[3])
    assert path.read_bytes() == header_of("r1") + LINES[0] + LINES[2] + LINES[3]
    assert path.with_name("journal.jsonl.damaged").read_bytes() == damaged
    with Journal(path) as journal:
        assert journal.records == [SOME[0], SOME[2], SOME[3]]


def test_a_newer_journal_is_refused_as_newer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal_lines, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        newer = header_of("r1")
    newer_record = line_of({**to_json(SOME[0]), "colour": "blue"})
    for data in (newer + LINES[0], header_of("r1") + newer_record, line_of({"kind": "colour"})):
        path.write_bytes(data)
        for read in (read_journal, lambda path: Journal(path).__enter__()):
            with pytest.raises(StoreError, match=r"made by a newer hyperbench: .*; update hyperbench"):
                read(path)
        assert path.read_bytes() == data
    # An old line is not: it has no checksum that says so.
    path.write_bytes(OLD_LINES[0].replace(b'"round"', b'"wound"') + OLD_LINES[2])
    assert told(path)[0] == [SOME[2]]


@pytest.mark.parametrize("place", ["fifo", "link", "folder", "dangling"])
def test_what_is_no_file_in_the_place_of_a_journal_neither_hangs_nor_is_written_to(place: str, path: Path) -> None:
    precious = path.with_name("precious")
    if place == "fifo":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    else:
        path.symlink_to(precious)
    if place == "link":
        precious.write_text("years of work")
    signal.alarm(20)
    with pytest.raises(StoreError, match="cannot write the journal"):
        Journal(path)
    signal.alarm(0)
    assert precious.exists() == (place == "link")
    assert not precious.exists() or precious.read_text() == "years of work"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_as_such(number: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreError, match=rf"the file system of {path.parent} has no locks \({os.strerror(number)}\)"):
        Journal(path)


def replace(path: Path) -> None:
    """Put another journal in the place of one, as an editor does."""
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


HARM = {
    "replaced": replace,
    "deleted": os.unlink,
    "with its folder": lambda path: shutil.rmtree(path.parent),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 30),
    "emptied": lambda path: os.truncate(path, 0),
    "appended to": lambda path: path.open("ab").write(b"x"),
}


@pytest.mark.parametrize("harm", list(HARM))
def test_harm_to_a_journal_that_is_being_written_is_noticed_and_nothing_is_lost(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / run_folder.JOURNAL
    path.parent.mkdir()
    with Journal(path) as journal:
        journal.begin("r1")
        journal.append(SOME[0])
        HARM[harm](path)
        after = path.read_bytes() if path.exists() else None
        with pytest.raises(JournalLostError, match=r"was (replaced|deleted|changed) .*in its place --resume goes on$"):
            journal.append(SOME[2])
    assert (path.read_bytes() if path.exists() else None) == after
    (rescued,) = path.parent.glob("journal.rescued-*.jsonl")
    assert rescued.read_bytes() == header_of("r1") + LINES[0] + LINES[2]
    rescued.replace(path)
    with Journal(path) as journal:
        assert journal.records == [SOME[0], SOME[2]]


@pytest.mark.parametrize("lines", [LINES, OLD_LINES], ids=["checked", "old"])
@pytest.mark.filterwarnings("ignore::hyperbench.store.files.DamageWarning")
def test_a_damaged_header_is_made_again_where_lines_have_checksums(lines: list[bytes], path: Path) -> None:
    path.write_bytes(header_of("r1").replace(b"r1", b"r2", 1) + b"".join(lines))
    journal = Journal(path)
    journal.begin("r1")
    with journal:
        assert journal.records == SOME
    assert path.read_bytes() == (header_of("r1") if lines is LINES else b"") + b"".join(lines)
