"""Output that nobody reads, that a terminal cannot show, or that would act on it: never a failure, never an escape."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperbench.analyze.show import show_run
from hyperbench.commands import exit_codes, streams
from hyperbench.commands.console import SafeConsole
from hyperbench.commands.output import print_lines
from hyperbench.commands.progress import Bar, Lines
from hyperbench.store.files import DiskError
from hyperbench.store.schema import Status
from tests.helpers.commands import Call
from tests.helpers.made_records import a_point, a_timing
from tests.helpers.synthetic_runs import failed, grid, write_run

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\r\x08\u202e"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


def written_to(fd: int, encoding: str = "utf-8") -> io.TextIOWrapper:
    """A standard stream on this descriptor, as `make_safe` makes it."""
    old = io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), encoding=encoding)
    new = streams._safe(old, old, fd, "standard output")
    assert isinstance(new, io.TextIOWrapper)
    return new


def test_a_reader_that_leaves_is_no_error(pipe: tuple[int, int]) -> None:
    stream = written_to(pipe[1])
    os.close(pipe[0])
    for _ in range(3):
        stream.write("a line that nobody reads\n")
        stream.flush()


def test_a_disk_that_is_full_is_an_error_once_and_the_end_of_the_program_is_none() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    stream = written_to(fd)
    stream.write("a line\n")
    with pytest.raises(OSError, match="No space left") as error:
        stream.flush()
    assert error.value.filename == "standard output"
    stream.close()
    os.close(fd)


def test_what_an_encoding_lacks_has_a_stand_in(pipe: tuple[int, int]) -> None:
    streams.make_safe()
    stream = written_to(pipe[1], "ascii")
    stream.write("12 ms ±1%, 3× · µs … ─ 変\udcff")
    stream.close()
    assert os.read(pipe[0], 100) == b"12 ms +-1%, 3x - us ... - ??"


def shell(folder: Path, line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `hyperbench` is this program."""
    program = f"hyperbench() {{ '{sys.executable}' -m hyperbench \"$@\"; }}; {line}"
    return subprocess.run(
        ["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


@pytest.mark.parametrize(
    "line",
    [
        "hyperbench list keys | head -1 > /dev/null; exit ${PIPESTATUS[0]}",
        "hyperbench run --help | head -1 > /dev/null; exit ${PIPESTATUS[0]}",
        "hyperbench list keys >&-",
        "hyperbench list keys <&- >&- 2>&-",
        "hyperbench --help >&-",
    ],
)
def test_whoever_reads_the_exit_code_is_that_of_the_command(tmp_path: Path, line: str) -> None:
    done = shell(tmp_path, line, PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_is_still_told_where_stdout_is_closed(tmp_path: Path) -> None:
    done = shell(tmp_path, "hyperbench show --run nowhere >&-")
    assert (done.returncode, done.stderr) == (2, "hyperbench: there is no run folder at nowhere\n")


def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    done = shell(tmp_path, "hyperbench list keys > /dev/full")
    assert (done.returncode, done.stderr) == (1, "hyperbench: standard output: No space left on device\n")


@pytest.mark.parametrize(
    "how", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_a_table_is_printed_where_only_ascii_can_be(tmp_path: Path, how: dict[str, str]) -> None:
    write_run(tmp_path / "run", grid((1024, 2048), masks=(False,)))
    done = shell(tmp_path, "hyperbench show --run run", **how)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert " +-" in done.stdout
    assert re.search(r"\d x|\dx", done.stdout)


@pytest.mark.parametrize(
    ("error", "code"), [(DiskError("full"), 1), (ValueError("wrong"), 2), (OSError(28, "full"), 1)]
)
def test_a_disk_that_is_full_is_no_bad_usage(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        exit_codes.leave_with(program)
    assert left.value.code == code


def on_terminal(write: Callable[[SafeConsole], object]) -> str:
    """What arrives at a terminal, without the styles of the console itself."""
    file = io.StringIO()
    write(SafeConsole(file=file, force_terminal=True, color_system=None, width=300))
    return file.getvalue()


def test_no_text_of_a_run_acts_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = f"mine{ESCAPES}"
    records = [
        *grid((64, 128), methods=("flash2", hostile), masks=(False,)),
        failed(a_point(method=f"b{ESCAPES}", seq_len=64), a_timing().pass_, Status.ERROR, f"no{ESCAPES}\n memory"),
    ]
    run = write_run(
        tmp_path / f"run{ESCAPES.replace('/', '')}", records, {"machine": f"m{ESCAPES}", "torch": ESCAPES + "2"}
    )
    shown = on_terminal(lambda console: show_run(run, console))
    assert "mine" in shown
    assert "memory" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)
    print_lines([run, f"message{ESCAPES}"])
    said = capsys.readouterr().out
    assert "message" in said
    assert all(c.isprintable() or c == "\n" for c in said)


def test_progress_prints_no_control_character_of_a_label_or_a_message() -> None:
    lost = a_timing(
        a_point(method=f"m{ESCAPES}"), status=Status.ERROR, samples_ms=(), stop_reason=None, message=ESCAPES
    )

    def watch(console: SafeConsole) -> None:
        with Bar(console) as bar:
            bar.start(1.0)
            bar.begin(f"label{ESCAPES}")
            bar.row(lost)
        Lines(console).row(lost)

    shown = on_terminal(watch)
    assert "label" in shown
    # The bar itself moves the cursor.
    assert not {"\x07", "\x08", "\x9b", "\u202e"} & set(shown)
    assert "\x1b[2J" not in shown.replace("\x1b[2K", "")
    assert "\x1b]" not in shown


@pytest.mark.parametrize(
    "words",
    [["show", "--run", f"nowhere{ESCAPES}"], ["run", f"sweep={ESCAPES}x"], ["plot", f"f{ESCAPES}", "--run", "."]],
)
def test_an_error_line_has_no_control_characters(call: Call, words: list[str]) -> None:
    answer = call(*words)
    assert answer.code == 2
    assert answer.err.rstrip("\n").isprintable()
