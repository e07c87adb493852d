"""The wire and the ends of it: nothing is lost or invented however the bytes are cut, and every end is named."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.measure import work_items
from hyperbench.measure.messages import Lines, Task, send
from hyperbench.measure.runner.worker_process import WorkerGone, WorkerProcess, WorkerTimeout, describe_exit
from hyperbench.store.schema import Pass
from tests.helpers.made_records import points
from tests.helpers.made_runs import tiny

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
messages = st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=5)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Any task."""
    config = tiny_config()
    items = draw(
        st.lists(
            st.builds(
                work_items.WorkItem,
                point=points(),
                exact=st.booleans(),
                passes=st.lists(st.sampled_from(Pass), unique=True).map(tuple),
                seeds=st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple),
                stages=st.booleans(),
                timed_stages=st.lists(st.text(max_size=5), max_size=3).map(tuple),
            ),
            min_size=1,
            max_size=3,
        )
    )
    return Task(
        items=tuple(items),
        passes=config.passes,
        protocol=config.protocol,
        error=config.error,
        round=draw(st.integers(0, 3)),
        threads=draw(st.none() | st.integers(1, 64)),
        no_reference=draw(st.text(max_size=9)),
    )


_CONFIG: list[Any] = []


def tiny_config() -> Any:
    """One configuration, composed once."""
    if not _CONFIG:
        _CONFIG.append(tiny().config)
    return _CONFIG[0]


@settings(max_examples=50)
@given(tasks())
def test_a_task_survives_the_wire(task: Task) -> None:
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


@given(messages, st.data())
def test_messages_come_out_whole_however_the_bytes_are_cut(sent: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(json.dumps(message).encode() + b"\n" for message in sent)
    lines, received, start = Lines(), [], 0
    while start < len(stream):
        stop = data.draw(st.integers(start + 1, len(stream)))
        received += list(lines.feed(stream[start:stop]))
        start = stop
    assert received == sent


@given(messages.filter(bool), st.data())
def test_a_torn_message_never_comes_out(sent: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(json.dumps(message).encode() + b"\n" for message in sent)
    cut = data.draw(st.integers(0, len(stream) - 1))
    received = list(Lines().feed(stream[:cut]))
    assert received == sent[: stream[:cut].count(b"\n")]


def test_a_message_larger_than_the_pipe_arrives() -> None:
    read_fd, write_fd = os.pipe()
    message = {"text": "x" * 300_000}
    sender = threading.Thread(target=lambda: (send(write_fd, message), os.close(write_fd)))
    sender.start()
    lines, received = Lines(), []
    while data := os.read(read_fd, 1 << 16):
        received += list(lines.feed(data))
    sender.join()
    os.close(read_fd)
    assert received == [message]


def test_a_message_to_nobody_is_an_error() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with pytest.raises(BrokenPipeError):
        send(write_fd, {})
    os.close(write_fd)


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (137, "exit code 137"),
        (-11, "ended by SIGSEGV"),
        (-6, "ended by SIGABRT"),
        (-9, "ended by SIGKILL, most likely for want of memory"),
        (-40, "signal 40"),
    ],
)
def test_the_end_of_a_process_is_named(returncode: int, words: str) -> None:
    assert words in describe_exit(returncode)
    assert ("memory" in describe_exit(returncode)) == (returncode == -9)
    assert (WorkerGone(returncode).returncode, str(WorkerGone(returncode))) == (returncode, describe_exit(returncode))


def test_a_worker_that_is_not_heard_of_is_ended_in_time(tmp_path: Path) -> None:
    worker = WorkerProcess({}, tmp_path / "log")
    with pytest.raises(WorkerTimeout):
        worker.receive(0.0)
    worker.end()
    worker.end()
    assert worker._process.returncode == -9


def test_a_worker_that_cannot_start_says_why_in_its_log(tmp_path: Path) -> None:
    worker = WorkerProcess({"PYTHONHOME": str(tmp_path / "nowhere")}, tmp_path / "log")
    with pytest.raises(WorkerGone, match="exit code 1"):
        # A time limit beyond what the system can wait at once.
        worker.receive(1e30)
    task = Task((), (), tiny_config().protocol, tiny_config().error, 0, None)
    with pytest.raises(WorkerGone, match="exit code 1"):
        worker.send(task)
    worker.end()
    assert "encodings" in (tmp_path / "log").read_text()
