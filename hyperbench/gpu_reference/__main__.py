"""The command line of `make gpu`: examine, plan, print the plan, then do it step by step."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperbench.gpu_reference import budget, state, steps, targets
from hyperbench.gpu_reference.machine import Machine, examine
from hyperbench.gpu_reference.processes import run_until
from hyperbench.store.provenance import code_fingerprint

ROOT = Path(__file__).resolve().parents[2]
ALL_RUNS = ("fig4", "long", "min_seq_len", "stages", "fig4-backward")
_REFERENCE = Path("results/reference")
#: Kept back from the budget for the figures and for a run that is stopped to write its tables.
_MARGIN_S = 15.0
_NO_TESTS = 5
_DONE = "done"
_USAGE, _FAILED, _INTERRUPTED = 2, 1, 130


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 all done, 1 something failed or was not finished, 2 nothing can be done, 130 interrupted."""
    args = _parser().parse_args(words)
    if args.out:
        args.out = str(_from_root(Path(args.out)))
    os.chdir(ROOT)
    try:
        return Reference(args).run()
    except ValueError as error:
        print(f"make gpu: {' '.join(str(error).split())}", file=sys.stderr)
        return _USAGE
    except BrokenPipeError:
        # The reader of our output has left (`| head`); Python must not try to flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except KeyboardInterrupt:
        print("make gpu: interrupted; the same command goes on", file=sys.stderr)
        return _INTERRUPTED


class Reference:
    """One `make gpu`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._start_s = time.monotonic()
        self._budget_s = budget.parse_budget(args.budget)
        self._scale = budget.TINY if args.tiny else budget.PAPER

    def run(self) -> int:
        """Examine, plan and print; then, unless it is a dry run, do it. Raises ValueError where nothing can be done."""
        args = self._args
        machine = examine(args.device)
        # As the commands have it, which run in the root of the checkout.
        folder = Path(args.out) if args.out else _REFERENCE / machine.folder
        print(machine.line())
        if args.dry_run:
            if machine.problem:
                print(f"nothing can be measured here: {machine.problem}; this is what a GPU would do")
            self._print_plan(folder, budget.choose(self._scale, self._budget_s, machine.flops_per_s), machine)
            return 0
        if machine.problem:
            raise ValueError(machine.problem)
        if not (ROOT / "tests" / "gpu").is_dir():
            raise ValueError(f"{ROOT} is no checkout: it has no tests/gpu")
        found = self._state(folder, machine)
        planned = self._print_plan(folder, found.choice, machine)
        found.write(folder)
        if not self._tests(folder, found):
            return _FAILED
        for run in planned:
            self._measure(run, folder, found)
        return self._conclude(folder, found, planned)

    def _state(self, folder: Path, machine: Machine) -> state.State:
        """The plan that the folder holds, or a new one. Raises ValueError if it holds another."""
        args = self._args
        origin = {
            "name": machine.name, "device": machine.device, **machine.versions, "code": code_fingerprint(),
            "budget": args.budget.strip(), "tiny": args.tiny,
        }  # fmt: skip
        if args.fresh:
            state.clear(folder, ALL_RUNS)
        known = state.read(folder)
        if known is None:
            return state.State(origin, budget.choose(self._scale, self._budget_s, machine.flops_per_s))
        changed = state.differing(known.origin, origin)
        if changed:
            raise ValueError(f"{folder} was begun with another {changed}; FRESH=1 measures everything again")
        return known

    def _print_plan(self, folder: Path, choice: budget.Choice, machine: Machine) -> tuple[steps.Run, ...]:
        planned = steps.runs(self._scale, choice, machine.device, machine.flops_per_s)
        tests_s = budget.tests_s(self._budget_s)
        total_s = tests_s + sum(run.estimate_s for run in planned)
        limit = f"of a budget of {self._args.budget.strip()}" if self._budget_s else "without a budget (GPU_BUDGET=8m)"
        print(f"results: {folder}")
        print(f"estimated time: {_duration(total_s)} {limit}")
        commands = [("tests", tests_s, steps.tests_command(folder, slow=budget.wants_slow_tests(self._budget_s)))]
        commands += [(run.name, run.estimate_s, run.command(folder)) for run in planned]
        for name, seconds, command in commands:
            print(f"\n{name}, about {_duration(seconds)}:\n  TRITON_INTERPRET=0 {shlex.join(command)}")
        drawn = [run for run in planned if run.has_figures]
        print("\nfigures:" if _imports("plotly") else "\nfigures, later, where plotly is installed:")
        for run in drawn:
            print(f"  {shlex.join(run.plot_command(folder, 'png'))}")
        left_out = [name for name in ALL_RUNS if name not in {run.name for run in planned}]
        if left_out:
            print(f"\nleft out: {', '.join(left_out)}")
        print(flush=True)
        return planned

    def _left_s(self) -> float | None:
        """Seconds of the budget that are left; None without a budget."""
        return None if self._budget_s is None else self._budget_s - (time.monotonic() - self._start_s) - _MARGIN_S

    def _tests(self, folder: Path, found: state.State) -> bool:
        """Run the tests unless this code has passed them here; whether to go on."""
        if found.tests and found.tests["finished"] and not found.tests["failed"]:
            print("tests: passed before by this code")
            return True
        begun_s = time.monotonic()
        command = steps.tests_command(folder, slow=budget.wants_slow_tests(self._budget_s))
        code = run_until(command, ROOT, budget.tests_limit_s(self._budget_s), folder / steps.TESTS_OUTPUT)
        counts = _counts(folder / steps.TESTS_COUNTS)
        finished = code is not None
        # Where every test is skipped, as without a GPU, pytest says that it found none.
        broken = finished and code not in (0, _NO_TESTS)
        nothing_passed = finished and self._args.device == "cuda" and not counts["passed"]
        failed = counts["failed"] or int(broken or nothing_passed)
        found.tests = {
            **counts,
            "failed": failed,
            "finished": finished,
            "seconds": round(time.monotonic() - begun_s, 1),
        }
        found.write(folder)
        where = folder / steps.TESTS_OUTPUT
        if not finished:
            print(f"tests: stopped after {_duration(found.tests['seconds'])} of their part of the budget; see {where}")
        if failed and not self._args.keep_going:
            print(f"tests: failed, nothing is measured; see {where}, or KEEP_GOING=1 to measure all the same")
        return not failed or self._args.keep_going

    def _measure(self, run: steps.Run, folder: Path, found: state.State) -> None:
        left_s = self._left_s()
        if found.steps.get(run.name) == _DONE:
            print(f"{run.name}: done before")
            return
        if left_s is not None and left_s <= 0:
            found.steps[run.name] = "not begun: the budget is spent"
        else:
            print(f"\n== {run.name}", flush=True)
            code = run_until(run.command(folder), ROOT, left_s)
            outcome = {0: _DONE, 1: "some points failed", None: "stopped: the budget is spent"}
            found.steps[run.name] = outcome.get(code, f"ended with exit code {code}")
        found.write(folder)

    def _conclude(self, folder: Path, found: state.State, planned: tuple[steps.Run, ...]) -> int:
        later = [run for run in planned if run.has_figures and not self._draw(run, folder)]
        print("\n== in short")
        tests = found.tests or {}
        counted = ", ".join(f"{tests.get(name, 0)} {name}" for name in ("passed", "failed", "skipped"))
        print(f"tests: {counted}{'' if tests.get('finished') else ', stopped by the budget'}")
        for run in planned:
            print(f"{run.name}: {found.steps[run.name]}")
        if self._args.device == "cuda" and (folder / "fig4" / "journal.jsonl").exists():
            print("\n".join(targets.lines(folder / "fig4")))
        if later:
            print("figures that are left for later, from the tables, where plotly and kaleido are installed:")
            for run in later:
                plotted = folder / run.name
                print(f"  hyperbench plot --run {shlex.quote(str(plotted))} --format png,html")
        done = all(found.steps[run.name] == _DONE for run in planned)
        sound = bool(tests.get("finished")) and not tests.get("failed")
        return 0 if done and sound else _FAILED

    def _draw(self, run: steps.Run, folder: Path) -> bool:
        """Draw a run's figures; whether there are any."""
        if not _imports("plotly") or not (folder / run.name / "journal.jsonl").exists():
            return False
        # Images need a browser as well; HTML does not.
        formats = ("png", "html") if _imports("kaleido") else ("html",)
        return any(run_until(run.plot_command(folder, fmt), ROOT, None) == 0 for fmt in formats)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hyperbench.gpu_reference", description=__doc__)
    budget_given = os.environ.get("GPU_BUDGET", "")
    parser.add_argument("--budget", default=budget_given, metavar="TIME", help="time for all, such as 90s, 8m or 1h")
    parser.add_argument("--dry-run", action="store_true", help="print the machine, the steps and their commands")
    parser.add_argument("--keep-going", action="store_true", help="measure although tests failed")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the logic")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: to try the logic")
    parser.add_argument("--out", metavar="DIR", help="folder of the results; default: results/reference/<gpu>")
    return parser


def _counts(path: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, as pytest's own report says; the report is removed."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return {"passed": 0, "failed": 0, "skipped": 0}
    finally:
        path.unlink(missing_ok=True)
    total, failures, errors, skipped = (
        sum(int(suite.get(name, "0")) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return {"passed": total - failures - errors - skipped, "failed": failures + errors, "skipped": skipped}


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _from_root(path: Path) -> Path:
    path = path.absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    sys.exit(main())
