"""`make gpu` without a GPU: names, budgets, commands, and which step stops what; nothing is measured."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
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
from tools.gpu_reference import STEPS, Machine, commands, gpu_folder, parse_budget, run_until, target_lines

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


@pytest.mark.parametrize("name", STEPS)
def test_every_run_is_one_that_hyperbench_takes_with_the_largest_length_first(name: str) -> None:
    command = commands(Path("out"), 480.0, "cuda")[name]
    words = command[command.index("run") + 1 :]

    found = prepare(words, lambda request, env: facts(request, env, **GPU_FACTS))

    config, points = found.config, found.points
    assert (config.device.name, config.protocol.name, config.protocol.rounds) == ("cuda", "strict", 1)
    assert points[0].seq_len == max(point.seq_len for point in points) == (1048576 if name == "long" else 131072)
    assert {point.heads for point in points} == {1 if name == "long" else 12}
    assert ("forward" in config.passes) != ("backward" in name)
    if name in ("headline", "backward", "fig4", "fig4_backward"):
        assert {(p.method, p.is_causal) for p in points} >= {
            (method, is_causal) for method in ("flash2", "cudnn", "hyper") for is_causal in (False, True)
        }


def test_a_longer_budget_takes_more_rounds_and_all_tests() -> None:
    found = [commands(Path("out"), budget_s, "cuda") for budget_s in (60.0, 1800.0, 36000.0, None)]
    assert [next(w for w in f["headline"] if "rounds" in w)[-1] for f in found] == ["1", "3", "5", "5"]
    assert ["not slow" in f["tests"] for f in found] == [True, False, False, False]
    assert all(list(f) == ["tests", *STEPS] for f in found)


class Processes:
    """Stands for child processes: notes each command with its limit, and answers with what the test says."""

    def __init__(self, **ends: int | None) -> None:
        self.commands: list[list[str]] = []
        self.limits: list[float | None] = []
        self._ends = ends

    def __call__(self, command: Sequence[str], limit_s: float | None) -> int | None:
        self.commands.append(list(command))
        self.limits.append(limit_s)
        name = next((Path(word).name for word in command if word.startswith("out=")), "tests")
        return self._ends.get(name, 0)

    @property
    def measured(self) -> list[str]:
        """The names of the runs that were begun."""
        return [Path(word).name for command in self.commands for word in command if word.startswith("out=")]


RunGpu = Callable[..., int]


@pytest.fixture
def run_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunGpu:
    """A function that runs `make gpu` on an H100 whose child processes are given."""

    def call(processes: Processes, *words: str, machine: Machine = H100) -> int:
        monkeypatch.setattr(gpu_reference, "examine", lambda device: machine)
        monkeypatch.setattr(gpu_reference, "run_until", processes)
        return gpu_reference.main([*words, "--out", str(tmp_path / "h100-80gb")])

    return call


def test_all_steps_run_after_the_tests_the_headline_first(run_gpu: RunGpu) -> None:
    processes = Processes()
    assert run_gpu(processes) == 0
    assert "pytest" in processes.commands[0]
    assert processes.measured == list(STEPS)
    assert processes.limits == [None] * len(processes.commands)


@pytest.mark.parametrize("budget", ["", "8m", "30m"])
def test_one_that_was_stopped_and_goes_on_measures_with_the_same_settings(run_gpu: RunGpu, budget: str) -> None:
    stopped, again = Processes(backward=None, stages=130), Processes()
    assert run_gpu(stopped, "--budget", budget, "error.seeds=[0]") == 1
    assert run_gpu(again, "--budget", budget, "error.seeds=[0]") == 0
    assert again.commands == stopped.commands
    assert all(command[-1] == "--resume" for command in again.commands[1:])


def test_fresh_measures_everything_again_and_only_chooses_steps(run_gpu: RunGpu) -> None:
    processes = Processes()
    assert run_gpu(processes, "--fresh", "--only", "stages,headline") == 0
    assert processes.measured == ["headline", "stages"]
    assert all("--resume" not in command and "--fresh" in command for command in processes.commands[1:])


@pytest.mark.parametrize("code", [1, 3, 5])
def test_failing_tests_stop_it_unless_it_is_to_go_on(
    run_gpu: RunGpu, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = Processes(tests=code)
    assert run_gpu(processes) == 1
    assert processes.measured == []
    assert "KEEP_GOING=1" in capsys.readouterr().out
    going = Processes(tests=code)
    assert run_gpu(going, "--keep-going") == 1
    assert going.measured == list(STEPS)


def test_steps_that_fail_stop_nothing_and_are_told(run_gpu: RunGpu, capsys: pytest.CaptureFixture[str]) -> None:
    processes = Processes(headline=1, backward=2, stages=None)
    assert run_gpu(processes) == 1
    assert processes.measured == list(STEPS)
    told = capsys.readouterr().out
    for line in ("headline: some failed", "backward: exit code 2", "stages: stopped: the budget", "fig4: done"):
        assert line in told
    assert told.count("not measured (target ") == 4


def test_a_budget_limits_every_step_and_a_spent_one_begins_none(
    run_gpu: RunGpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]

    class Slow(Processes):
        def __call__(self, *args: Any) -> int | None:
            now[0] += 200.0
            return super().__call__(*args)

    monkeypatch.setattr(gpu_reference.time, "monotonic", lambda: now[0])
    processes = Slow(tests=None)
    assert run_gpu(processes, "--budget", "8m") == 1
    assert processes.measured == ["headline", "backward"]
    assert processes.limits == [168.0, 265.0, 65.0]
    assert "stages: not begun: the budget is spent" in capsys.readouterr().out


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


def test_speedups_stand_beside_their_targets(tmp_path: Path) -> None:
    lines = target_lines(ROOT / "results/reference/amd-epyc-family-25-2-cores/fig4", 65536)
    assert ["not measured" in line for line in lines] == [False, False, True, True]
    assert all(float(line.split(": ")[1].split("x (target")[0]) > 1 for line in lines[:2])
    assert all("not measured (target" in line for line in target_lines(tmp_path))


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
    words = ["DRY_RUN=1", "GPU_BUDGET=8m", "FRESH=1", "ARGS=--only headline error.seeds=[0]", "OUT=it's here"]
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={sys.executable}", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("machine: ", "sweep=gpu_headline", "a budget of 8m", "--fresh", "error.seeds=[0]", "it'\"'\"'s here"):
        assert word in done.stdout
    assert "sweep=gpu_backward" not in done.stdout
    assert sorted((ROOT / "results").rglob("*")) == before
