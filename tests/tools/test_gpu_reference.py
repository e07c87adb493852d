"""`make gpu` without a GPU: names, budgets, plans and commands, and which step stops what; nothing is measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.config.catalog import ConfigError
from hyperbench.gpu_reference import __main__ as program
from hyperbench.gpu_reference import budget, state, steps
from hyperbench.gpu_reference.budget import PAPER, TINY, Choice, choices, choose, parse_budget, total_s
from hyperbench.gpu_reference.machine import Machine, examine, gpu_folder
from hyperbench.measure.runner.prepare import prepare
from tests.helpers.made_runs import facts

ROOT = Path(__file__).parents[2]
RATE = 2e14
H100 = Machine("cuda", "NVIDIA H100 80GB HBM3", {"Python": "3.12.1", "torch": "2.11.0", "Triton": "3.6.0"}, RATE)
GPU_FACTS = {
    "cuda_available": True, "cuda_bfloat16": True, "cuda": "12.8", "gpu_name": "NVIDIA H100 80GB HBM3", "gpu_count": 1,
    "gpu_memory_bytes": 2**36, "flops_per_s": {"cpu": 1e11, "cuda": RATE},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("Tesla T4", "t4"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100-80gb-mig-1g-10gb"),
        ("NVIDIA Graphics", "nvidia-graphics"),
        ("", "gpu"),
    ],
)
def test_a_folder_is_named_after_the_gpu(name: str, folder: str) -> None:
    assert gpu_folder(name) == folder


@given(st.text(max_size=40))
def test_every_name_makes_a_plain_folder(name: str) -> None:
    folder = gpu_folder(name)
    assert folder
    assert set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert gpu_folder(folder) == folder


@pytest.mark.parametrize(
    ("text", "seconds"), [("8m", 480), ("90s", 90), ("1h", 3600), ("1.5m", 90), (" 2m ", 120), ("", None), (" ", None)]
)
def test_budgets(text: str, seconds: float | None) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["8", "m", "0m", "-1m", "8min", "8 m", "1h30m", "1e9h", "nan", "8M", "٣m", "9999999s"])
def test_other_budgets_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="GPU_BUDGET=") as caught:
        parse_budget(text)
    assert "8m" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [PAPER, TINY])
def test_each_choice_takes_less_and_keeps_the_largest_length(scale: budget.Scale) -> None:
    found = list(choices(scale))
    assert found[0] == Choice(scale.seq_lens, scale.seq_lens, ("long", "min_seq_len", "stages"), 5.0)
    totals = [total_s(scale, choice, 480, RATE) for choice in found]
    assert totals == sorted(totals, reverse=True)
    for choice in found:
        assert choice.forward == scale.seq_lens[-len(choice.forward) :]
        assert not choice.backward or choice.backward == scale.seq_lens[-len(choice.backward) :]
    assert found[-1].forward == scale.seq_lens[-1:]
    # No pass goes before the rounds have gone to one.
    assert [choice.rounds for choice in found[:3]] == [5, 3, 1]
    assert all(choice.rounds == 1 for choice in found[2:])
    # No length of the forward pass goes before the backward passes have gone.
    assert all(choice.forward == scale.seq_lens for choice in found if choice.backward)


@given(st.floats(1, 1e5), st.floats(1e13, 1e15))
def test_what_is_chosen_fits_into_the_budget(seconds: float, rate: float) -> None:
    least = min(total_s(PAPER, choice, seconds, rate) for choice in choices(PAPER))
    if least > seconds:
        with pytest.raises(ValueError, match="too short"):
            choose(PAPER, seconds, rate)
    else:
        assert total_s(PAPER, choose(PAPER, seconds, rate), seconds, rate) <= seconds


def test_eight_minutes_are_enough_for_the_largest_sizes_and_no_budget_is_enough_for_all() -> None:
    assert {65536, 131072} <= set(choose(PAPER, 480, RATE).forward)
    assert "long" in choose(PAPER, 480, RATE).extras
    assert choose(PAPER, None, RATE) == next(choices(PAPER))


@pytest.mark.parametrize("choice", [*choices(PAPER)])
def test_every_run_is_one_that_hyperbench_takes(choice: Choice) -> None:
    planned = steps.runs(PAPER, choice, "cuda", RATE)
    assert planned[0].name == "fig4"
    for run in planned:
        found = prepare(run.words, lambda request, env: facts(request, env, **GPU_FACTS))
        config, points = found.config, list(found.points)
        assert (config.device.name, config.protocol.name) == ("cuda", "strict")
        if run.name.startswith("fig4"):
            assert {p.method for p in points} == {"flash2", "cudnn", "hyper"}
            assert {p.is_causal for p in points} == {False, True}
            assert {p.heads for p in points} == {12}
        lengths = {p.seq_len for p in points}
        assert max(lengths) == (1048576 if run.name == "long" else 131072)
        assert "forward" in config.passes or run.name == "fig4-backward"
    (leaves,) = [run for run in planned if run.name == "min_seq_len"] or [None]
    assert leaves is None or any("min_seq_len=1024,2048,4096" in word for word in leaves.words)


def test_a_tiny_run_differs_in_sizes_alone() -> None:
    full, tiny = (steps.runs(scale, next(choices(scale)), "cpu", RATE) for scale in (PAPER, TINY))
    assert [run.name for run in full] == [run.name for run in tiny]
    for one, other in zip(full, tiny, strict=True):
        assert [w.partition("=")[0] for w in one.words] == [w.partition("=")[0] for w in other.words[: len(one.words)]]
        keys = [word.partition("=")[0] for word in other.words]
        assert len(set(keys)) == len(keys)
        prepare(other.words, facts)


class TestMachine:
    """What is wrong with a machine is one line."""

    def test_a_gpu_is_found(self) -> None:
        machine = examine("cuda", lambda request, env: facts(request, env, **GPU_FACTS), missing=())
        assert (machine.problem, machine.folder, machine.flops_per_s) == ("", "h100-80gb", RATE)
        assert "NVIDIA H100 80GB HBM3" in machine.line()
        assert "CUDA 12.8" in machine.line()

    def test_no_gpu(self) -> None:
        assert "sees no CUDA GPU" in examine("cuda", facts, missing=()).problem
        assert examine("cpu", facts, missing=()).problem == ""

    def test_no_torch(self) -> None:
        def raises(*_: Any) -> dict[str, Any]:
            raise ConfigError("PyTorch does not start here: no module")

        assert examine("cuda", raises, missing=()).problem == "PyTorch does not start here: no module"

    def test_missing_modules_are_named_before_anything_is_started(self) -> None:
        machine = examine("cuda", lambda *_: pytest.fail("it was asked"), missing=("torch", "hydra"))
        assert machine.problem.endswith("has no torch, hydra")


class Processes:
    """Stands for child processes: notes each command and answers with what the test says."""

    def __init__(
        self, tests: int | None = 0, runs: Sequence[int | None] = (), passed: int = 3, failed: int = 0
    ) -> None:
        self.commands: list[list[str]] = []
        self.limits: list[float | None] = []
        self._tests, self._runs, self._counts = tests, list(runs), (passed, failed)

    def __call__(
        self, command: Sequence[str], root: Path, limit_s: float | None, tee: Path | None = None
    ) -> int | None:
        assert root == ROOT
        self.commands.append(list(command))
        self.limits.append(limit_s)
        if tee is not None:
            passed, failed = self._counts
            report = f'<testsuites><testsuite tests="{passed + failed}" failures="{failed}"/></testsuites>'
            (tee.parent / steps.TESTS_COUNTS).write_text(report)
            return self._tests
        return self._runs.pop(0) if self._runs and "run" in command else 0

    @property
    def measured(self) -> list[str]:
        """The names of the runs that were begun."""
        outs = [word for command in self.commands for word in command if word.startswith("out=")]
        return [Path(out.removeprefix("out=")).name for out in outs]


@pytest.fixture
def run_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that runs `make gpu` on an H100 whose child processes are given."""

    def call(processes: Processes, *words: str, machine: Machine = H100) -> int:
        monkeypatch.setattr(program, "examine", lambda device: replace(machine, device=device))
        monkeypatch.setattr(program, "run_until", processes)
        monkeypatch.setattr(program, "ROOT", ROOT)
        monkeypatch.chdir(ROOT)
        return program.main([*words, "--out", str(tmp_path / "h100-80gb")])

    return call


class TestSteps:
    """Which step stops what, and what is left on disk."""

    def state(self, tmp_path: Path) -> dict[str, Any]:
        """The state that was left."""
        found: dict[str, Any] = json.loads((tmp_path / "h100-80gb" / state.STATE).read_text())
        return found

    def test_all_steps_run_after_the_tests(self, run_gpu: Any, tmp_path: Path) -> None:
        processes = Processes()
        assert run_gpu(processes) == 0
        assert "pytest" in processes.commands[0]
        assert processes.measured == ["fig4", "long", "min_seq_len", "stages", "fig4-backward"]
        assert set(self.state(tmp_path)["steps"].values()) == {"done"}
        assert self.state(tmp_path)["tests"]["passed"] == 3

    def test_the_same_command_begins_nothing_twice(self, run_gpu: Any) -> None:
        run_gpu(Processes())
        again = Processes()
        assert run_gpu(again) == 0
        assert again.measured == []
        assert not any("pytest" in command for command in again.commands)

    @pytest.mark.parametrize("answer", [{"tests": 1, "failed": 2}, {"tests": 3}, {"passed": 0}])
    def test_failing_tests_stop_it_unless_it_is_to_go_on(
        self, run_gpu: Any, tmp_path: Path, answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        processes = Processes(**answer)
        assert run_gpu(processes) == 1
        assert processes.measured == []
        assert "KEEP_GOING=1" in capsys.readouterr().out
        assert self.state(tmp_path)["tests"]["failed"] >= 1
        going = Processes(**answer)
        assert run_gpu(going, "--keep-going") == 1
        assert "fig4" in going.measured

    def test_points_that_fail_stop_nothing_and_are_told(self, run_gpu: Any, tmp_path: Path) -> None:
        processes = Processes(runs=[1, 2, None])
        assert run_gpu(processes) == 1
        assert len(processes.measured) == 5
        found = self.state(tmp_path)["steps"]
        assert (found["fig4"], found["long"]) == ("some points failed", "ended with exit code 2")
        assert found["min_seq_len"].startswith("stopped")
        again = Processes()
        assert run_gpu(again) == 0
        assert again.measured == ["fig4", "long", "min_seq_len"]

    def test_a_budget_limits_every_step_and_a_spent_one_begins_none(
        self, run_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]

        class Slow(Processes):
            def __call__(self, *args: Any, **kwargs: Any) -> int | None:
                now[0] += 200.0
                return super().__call__(*args, **kwargs)

        monkeypatch.setattr(program.time, "monotonic", lambda: now[0])
        processes = Slow()
        assert run_gpu(processes, "--budget", "8m") == 1
        assert processes.measured == ["fig4", "long"]
        assert all(limit is not None and limit <= 480 for limit in processes.limits[:3])
        assert self.state(tmp_path)["steps"]["min_seq_len"].startswith("not begun")
        assert "not slow" in processes.commands[0]

    def test_another_budget_or_machine_is_refused_and_fresh_replaces_it(
        self, run_gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_gpu(Processes(), "--budget", "8m") == 0
        before = self.state(tmp_path)
        for words, other, named in (
            (["--budget", "9m"], H100, "budget (8m there, 9m here)"),
            (["--budget", "8m"], replace(H100, versions={**H100.versions, "torch": "2.13.0"}), "torch"),
            (["--budget", "8m"], replace(H100, name="NVIDIA H200"), "name"),
        ):
            refused = Processes()
            assert run_gpu(refused, *words, machine=other) == 2
            assert refused.commands == []
            error = capsys.readouterr().err
            assert named in error
            assert "FRESH=1" in error
            assert len(error.splitlines()) == 1
        assert self.state(tmp_path) == before
        (tmp_path / "h100-80gb" / "mine.txt").write_text("kept")
        assert run_gpu(Processes(), "--budget", "9m", "--fresh") == 0
        assert self.state(tmp_path)["origin"]["budget"] == "9m"
        assert (tmp_path / "h100-80gb" / "mine.txt").exists()

    def test_a_damaged_state_is_one_line(
        self, run_gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "h100-80gb"
        folder.mkdir()
        for text in ("", "[]", '{"origin": {}}', '{"origin": {}, "choice": 3, "tests": null, "steps": {}}'):
            (folder / state.STATE).write_text(text)
            assert run_gpu(Processes()) == 2
            assert len(capsys.readouterr().err.splitlines()) == 1

    @pytest.mark.parametrize(
        ("words", "machine", "said"),
        [
            (["--budget", "8x"], H100, "GPU_BUDGET=8x"),
            (["--budget", "5s"], H100, "too short"),
            ([], replace(H100, name=None, problem="PyTorch sees no CUDA GPU here"), "no CUDA GPU"),
        ],
    )
    def test_what_cannot_be_done_is_one_line_and_exit_code_2(
        self, run_gpu: Any, tmp_path: Path, words: list[str], machine: Machine, said: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        processes = Processes()
        assert run_gpu(processes, *words, machine=machine) == 2
        assert processes.commands == []
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "h100-80gb").exists()

    @pytest.mark.parametrize("problem", ["", "PyTorch sees no CUDA GPU here"])
    def test_a_dry_run_tells_everything_and_does_nothing(
        self, run_gpu: Any, tmp_path: Path, problem: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        processes = Processes()
        assert run_gpu(processes, "--dry-run", "--budget", "8m", machine=replace(H100, problem=problem)) == 0
        assert processes.commands == []
        assert not (tmp_path / "h100-80gb").exists()
        told = capsys.readouterr().out
        for word in (
            "NVIDIA H100",
            "tests/gpu",
            "sweep=fig4",
            "131072",
            "1048576",
            "budget of 8m",
            "--resume",
            problem,
        ):
            assert word in told


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMake:
    """The target of the Makefile."""

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`make gpu` with the Python of the tests."""
        return subprocess.run(
            ["make", "gpu", f"PYTHON={sys.executable}", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )

    def test_a_dry_run(self) -> None:
        before = sorted((ROOT / "results").rglob("*"))
        done = self.make("DRY_RUN=1", "GPU_BUDGET=8m")
        assert done.returncode == 0, done.stderr
        for word in ("machine: ", "results/reference/", "sweep=fig4", "131072", "TRITON_INTERPRET=0", "budget of 8m"):
            assert word in done.stdout
        assert sorted((ROOT / "results").rglob("*")) == before

    def test_a_bad_budget(self) -> None:
        done = self.make("DRY_RUN=1", "GPU_BUDGET=soon; it's")
        assert done.returncode != 0
        assert "GPU_BUDGET=soon; it's must be a positive number" in done.stderr
        assert "Traceback" not in done.stderr
