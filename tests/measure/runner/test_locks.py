"""One run at a time on a device: the lock is refused with its owner's number, and dies with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hyperbench.measure.runner.locks import DeviceBusyError, DeviceLock, busy_devices, device_key, lock_dir

HOLDER = """
import sys
from pathlib import Path
from hyperbench.measure.runner.locks import DeviceLock
with DeviceLock("cpu", Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_owner_is_refused_and_told_of_the_first_until_it_is_killed(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with (
        pytest.raises(DeviceBusyError, match=rf"^device cpu is .*process {first.pid}\); wait for it"),
        DeviceLock("cpu", tmp_path),
    ):
        pass
    with DeviceLock("cuda-0", tmp_path):
        pass
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    with DeviceLock("cpu", tmp_path):
        pass


def test_a_lock_is_given_back_whatever_happens_while_it_is_held(tmp_path: Path) -> None:
    lock = DeviceLock("cpu", tmp_path)
    with pytest.raises(RuntimeError), lock:
        raise RuntimeError
    with lock, pytest.raises(DeviceBusyError, match=str(os.getpid())), DeviceLock("cpu", tmp_path):
        pass
    with DeviceLock("cpu", tmp_path):
        pass


def test_a_child_that_outlives_its_parent_holds_no_lock(tmp_path: Path) -> None:
    with DeviceLock("cpu", tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with DeviceLock("cpu", tmp_path):
            pass
    finally:
        child.communicate(b"\n")


def test_where_nothing_can_be_written_nothing_is_locked_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "inside"
    with DeviceLock("cpu", inside) as first, DeviceLock("cpu", inside) as second:
        assert first.note == second.note
        assert first.note.startswith(f"cannot lock {inside / 'hyperbench-cpu.lock'} (Not a directory)")
    with DeviceLock("cpu", tmp_path) as lock:
        assert lock.note == ""


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("years of work")
    (tmp_path / "hyperbench-cpu.lock").symlink_to(tmp_path / "precious")
    with DeviceLock("cpu", tmp_path) as lock:
        assert lock.note
    assert (tmp_path / "precious").read_text() == "years of work"


def test_what_is_no_file_in_the_place_of_the_lock_neither_hangs_nor_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hyperbench-cpu.lock")
    (tmp_path / "hyperbench-cuda-0.lock").mkdir()
    signal.alarm(20)
    assert busy_devices(tmp_path) == ""
    with DeviceLock("cpu", tmp_path) as lock, DeviceLock("cuda-0", tmp_path) as other:
        assert "it is no regular file" in lock.note
        assert "Is a directory" in other.note
    signal.alarm(0)


def test_the_lock_is_for_all_users_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with DeviceLock("cpu", tmp_path) as lock:
            assert lock.path.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_who_measures_what_is_told_to_those_who_only_ask(tmp_path: Path) -> None:
    assert busy_devices(tmp_path) == ""
    with DeviceLock("cpu", tmp_path), DeviceLock("cuda-0", tmp_path):
        said = busy_devices(tmp_path)
        for device in ("cpu", "cuda-0"):
            assert f"device {device} is being measured by another hyperbench (process {os.getpid()})" in said
        # To ask takes nothing.
        assert busy_devices(tmp_path) == said
    assert busy_devices(tmp_path) == ""


def test_a_gpu_is_told_by_its_own_id_else_by_what_is_visible() -> None:
    assert device_key("cpu", {"gpu_uuid": "abc"}) == "cpu"
    assert device_key("cuda", {"gpu_uuid": "abc"}, {"CUDA_VISIBLE_DEVICES": "3"}) == "cuda-abc"
    assert device_key("cuda", {}, {"CUDA_VISIBLE_DEVICES": "3,4"}) == "cuda-3"
    assert device_key("cuda", {"gpu_uuid": None}, {}) == "cuda-0"


def test_the_place_is_one_for_all_environments_of_a_machine(tmp_path: Path) -> None:
    for env in ({}, {"TMPDIR": str(tmp_path)}, {"XDG_RUNTIME_DIR": str(tmp_path)}, {"HYPERBENCH_LOCK_DIR": ""}):
        assert lock_dir(env) == lock_dir({"USER": "another"})
    assert lock_dir({"HYPERBENCH_LOCK_DIR": str(tmp_path)}) == tmp_path
    assert DeviceLock("cuda-GPU 1/../x", tmp_path).path.parent == tmp_path
