"""`make gpu` without a GPU: names, budgets, commands, what a failure leaves out, the archive; nothing is measured."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.measure.runner.prepare import prepare
from tests.helpers.made_runs import facts
from tools import gpu_reference
from tools.gpu_reference import OURS, RUNS, STEPS, Machine, commands, gpu_folder, pack, parse_budget, run_until

ROOT = Path(__file__).parents[2]
H100 = Machine("NVIDIA H100 80GB HBM3", "Python 3.12.1, torch 2.11.0, CUDA 12.8")
GPU_FACTS = {
    "cuda_available": True, "cuda_bfloat16": True, "cuda": "12.8", "gpu_name": H100.name, "gpu_count": 1,
    "gpu_memory_bytes": 2**36,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100-80gb-mig-1g-10gb"),
        ("NVIDIA Graphics", "nvidia-graphics"),
    ],
)
def test_a_folder_is_named_after_the_gpu(name: str, folder: str) -> None:
    assert gpu_folder(name) == folder


@given(st.from_regex(r"[A-Za-z0-9].{0,40}"))
def test_every_name_makes_a_plain_folder(name: str) -> None:
    folder = gpu_folder(name)
    assert set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert gpu_folder(folder) == folder


@pytest.mark.parametrize(("text", "seconds"), [("8m", 480), ("90s", 90), ("1h", 3600), (" 1.5m ", 90), (" ", None)])
def test_budgets(text: str, seconds: float | None) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["8", "m", "0m", "-1m", "8min", "1h30m", "1e9h", "nan", "8M", "٣m", "9999999s"])
def test_other_budgets_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"GPU_BUDGET=.* such as 90s, 8m or 1h$"):
        parse_budget(text)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_one_that_hyperbench_takes_with_the_largest_length_first(name: str) -> None:
    command = commands(Path("out"), "cuda")[name]
    words = [word for word in command[command.index("run") + 1 :] if word != "--resume"]

    found = prepare(words, lambda request, env: facts(request, env, **GPU_FACTS))

    config, points = found.config, found.points
    rounds = 5 if name == "fig4" else 1
    assert (config.device.name, config.protocol.name, config.protocol.rounds) == ("cuda", "strict", rounds)
    assert points[0].seq_len == max(point.seq_len for point in points) == (1048576 if name == "long" else 131072)
    assert {point.heads for point in points} == {1 if name == "long" else 12}
    assert {p.method for p in points} == set(RUNS[name][0])
    assert {p.is_causal for p in points} == ({True} if name == "leaves" else {False, True})
    passes = {"both_passes": ("forward_backward",), "fig4": ("forward", "backward", "forward_backward")}
    assert config.passes == passes.get(name, ("forward",))
    assert config.stages == (name == "stages")


def test_a_method_that_is_wrong_is_left_out_of_every_run() -> None:
    found = commands(Path("out"), "cuda", wrong=["hyper"])
    assert not found["leaves"]
    assert all("hyper" not in word_methods(found[name]) for name in RUNS if name != "leaves")
    assert word_methods(found["headline"]) == ["flash2", "cudnn", "hyper_paper"]
    both = commands(Path("out"), "cuda", wrong=OURS)
    assert [name for name in RUNS if not both[name]] == ["stages", "leaves", "long"]


def word_methods(command: Sequence[str]) -> list[str]:
    """The methods that a command times."""
    (word,) = (word for word in command if word.startswith("method="))
    return word.removeprefix("method=[").removesuffix("]").split(",")


def test_words_replace_those_of_the_runs() -> None:
    command = commands(Path("out"), "cuda", ["shape.seq_len=64", "protocol.max_samples=3"])["fig4"]
    assert [word for word in command if word.startswith("shape.seq_len=")] == ["shape.seq_len=64"]
    assert "protocol.max_samples=3" in command


class Processes:
    """Stands for child processes: notes each command with its limit, and answers with what the test says."""

    def __init__(self, **ends: int | None) -> None:
        self.commands: list[list[str]] = []
        self.limits: list[float | None] = []
        self._ends = ends

    def __call__(self, command: Sequence[str], limit_s: float | None) -> int | None:
        self.commands.append(list(command))
        self.limits.append(limit_s)
        return self._ends.get(self._name(command), 0)

    @staticmethod
    def _name(command: Sequence[str]) -> str:
        if "tools.gpu_check" in command:
            return f"check_{command[3]}"
        return next((Path(word).name for word in command if word.startswith("out=")), "tests")

    @property
    def begun(self) -> list[str]:
        """The names of the steps that were begun."""
        return [self._name(command) for command in self.commands]


RunGpu = Callable[..., int]


@pytest.fixture
def run_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunGpu:
    """A function that runs `make gpu` on an H100 whose child processes are given."""

    def call(processes: Processes, *words: str, machine: Machine = H100) -> int:
        monkeypatch.setattr(gpu_reference, "examine", lambda device: machine)
        monkeypatch.setattr(gpu_reference, "run_until", processes)
        return gpu_reference.main([*words, "--out", str(tmp_path / "h100-80gb")])

    return call


CHECKS = [f"check_{method}" for method in OURS]


def test_checks_come_first_then_the_headline_and_the_tests_last(run_gpu: RunGpu) -> None:
    processes = Processes()
    assert run_gpu(processes) == 0
    assert processes.begun == [*CHECKS, "headline", "both_passes", "stages", "leaves", "fig4", "long", "tests"]
    assert processes.limits == [180.0, 180.0] + [None] * len(STEPS)


@pytest.mark.parametrize("budget", ["", "8m", "30m"])
def test_one_that_was_stopped_and_goes_on_measures_with_the_same_settings(run_gpu: RunGpu, budget: str) -> None:
    stopped, again = Processes(both_passes=None, stages=130), Processes()
    assert run_gpu(stopped, "--budget", budget, "error.seeds=[0]") == 1
    assert run_gpu(again, "error.seeds=[0]") == 0
    assert again.commands == stopped.commands
    assert all("--resume" in command for command in again.commands if "run" in command)


def test_steps_can_be_chosen_and_are_checked_first(run_gpu: RunGpu) -> None:
    processes = Processes()
    assert run_gpu(processes, "--only", "stages,headline") == 0
    assert processes.begun == [*CHECKS, "headline", "stages"]


@pytest.mark.parametrize("code", [1, -11, None])
def test_a_wrong_method_alone_is_not_timed(
    run_gpu: RunGpu, code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = Processes(check_hyper=code)
    assert run_gpu(processes) == 1
    assert processes.begun == [*CHECKS, *(name for name in STEPS if name != "leaves")]
    timed = [word_methods(command) for command in processes.commands if "run" in command]
    assert timed[0] == ["flash2", "cudnn", "hyper_paper"]
    assert not any("hyper" in methods for methods in timed)
    assert "leaves: left out: hyper failed the check" in capsys.readouterr().out


def test_steps_that_fail_stop_nothing_and_are_told(run_gpu: RunGpu, capsys: pytest.CaptureFixture[str]) -> None:
    processes = Processes(headline=1, both_passes=2, stages=None, tests=1)
    assert run_gpu(processes) == 1
    assert processes.begun == [*CHECKS, *STEPS]
    told = capsys.readouterr().out
    for line in ("headline: some failed", "both_passes: exit code 2", "stages: stopped", "fig4: done", "tests: some"):
        assert line in told


def test_a_budget_limits_every_step_and_a_spent_one_begins_none(
    run_gpu: RunGpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]

    class Slow(Processes):
        def __call__(self, *args: Any) -> int | None:
            now[0] += 200.0
            return super().__call__(*args)

    monkeypatch.setattr(gpu_reference.time, "monotonic", lambda: now[0])
    processes = Slow()
    assert run_gpu(processes, "--budget", "8m", "--only", "fig4,tests") == 1
    assert processes.begun == [*CHECKS, "fig4"]
    assert processes.limits == [180.0, 180.0, 0.8 * 60.0]
    assert "tests: not begun: the budget is spent" in capsys.readouterr().out


def test_the_archive_is_renewed_after_every_step_and_is_whole_at_any_time(run_gpu: RunGpu, tmp_path: Path) -> None:
    folder, archive = tmp_path / "h100-80gb", tmp_path / "h100-80gb.tar.gz"
    seen = []

    class Writing(Processes):
        def __call__(self, command: Sequence[str], limit_s: float | None) -> int | None:
            seen.append(members(archive) if archive.exists() else [])
            (folder / f"{len(seen)}.txt").write_text("measured")
            if self._name(command) == "tests":
                raise KeyboardInterrupt
            return super().__call__(command, limit_s)

    assert run_gpu(Writing()) == 130
    assert seen == [[f"{i + 1}.txt" for i in range(count)] for count in range(len(seen))]
    assert members(archive) == [f"{i + 1}.txt" for i in range(len(seen))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h100-80gb", "h100-80gb.tar.gz"]


def test_an_archive_in_its_own_folder_does_not_hold_itself(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1")
    for _ in range(2):
        pack(tmp_path, tmp_path / "all.tar.gz")
    assert members(tmp_path / "all.tar.gz") == ["table.csv"]


def members(archive: Path) -> list[str]:
    """The names of the files in an archive."""
    with tarfile.open(archive) as file:
        return sorted(Path(entry.name).name for entry in file if entry.isfile())


@pytest.mark.parametrize(
    ("words", "problem", "said"),
    [
        (["--budget", "8x"], "", "GPU_BUDGET=8x"),
        (["--only", "headline,fig5"], "", "no step 'fig5'; allowed: headline"),
        ([], "PyTorch sees no CUDA GPU here", "no CUDA GPU"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    run_gpu: RunGpu, words: list[str], problem: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = Processes()
    assert run_gpu(processes, *words, machine=H100._replace(problem=problem)) == 2
    assert processes.commands == []
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_missing_modules_are_named_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_reference, "_NEEDED", ("pytest", "no_such_module_here"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("it was asked"))
    assert gpu_reference.examine("cuda").problem.endswith("has no no_such_module_here")


class TestProcesses:
    """Children end when asked, when their time is up, and with their parent."""

    wait = (
        "import pathlib, signal, sys\n"
        "print('ready', flush=True)\n"
        "try:\n    signal.pause()\n"
        "except KeyboardInterrupt:\n    pathlib.Path(sys.argv[1]).write_text('tables')\n"
    )

    def test_an_exit_code_comes_back_and_kernels_are_compiled(self) -> None:
        script = "import os; raise SystemExit(3 + int(os.environ['TRITON_INTERPRET']))"
        assert run_until([sys.executable, "-c", script], None) == 3

    def test_one_whose_time_is_up_is_asked_to_end(self, tmp_path: Path) -> None:
        assert run_until([sys.executable, "-c", self.wait, str(tmp_path / "end")], 1.0) is None
        assert (tmp_path / "end").read_text() == "tables"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_it_ends_with_its_parent(self, tmp_path: Path, number: signal.Signals) -> None:
        script = "import sys; from tools.gpu_reference import run_until; run_until(sys.argv[1:], None)"
        child = [sys.executable, "-c", self.wait, str(tmp_path / "end")]
        command = [sys.executable, "-c", script, *child]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"ready\n"
            time.sleep(0.1)  # The child may still be on its way into the call that waits.
            parent.send_signal(number)
            # The pipe ends when the last of its processes has.
            assert parent.stdout.read() == b""
        assert (tmp_path / "end").exists() == (number == signal.SIGINT)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_passes_its_words_on_and_a_dry_run_writes_nothing() -> None:
    before = sorted((ROOT / "results").rglob("*"))
    words = ["DRY_RUN=1", "GPU_BUDGET=8m", "ARGS=--only headline error.seeds=[0]", "OUT=it's here"]
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={sys.executable}", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "machine: ", "tools.gpu_check hyper_paper", "shape.seq_len=131072", "a budget of 8m", "error.seeds=[0]",
        "it'\"'\"'s here", "it's here.tar.gz",
    ):  # fmt: skip
        assert word in done.stdout
    assert "forward_backward" not in done.stdout
    assert sorted((ROOT / "results").rglob("*")) == before
    assert not (ROOT / "it's here").exists()
