"""`make gpu`: the tests on the GPU, then `hyperbench run` on the sweeps gpu_*, in the order of what is worth most.

The commands depend on the options and the machine alone, and each of them resumes its own run: so the same command goes
on where it was stopped, and nothing else needs to be remembered.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: Each is the sweep gpu_<name> and the folder <name>.
STEPS = ("headline", "backward", "stages", "leaves", "long", "fig4", "fig4_backward")
#: Figures need plotly and .parquet needs pyarrow, but both can be made later, elsewhere, from the journal.
_NEEDED = ("torch", "triton", "pandas", "hydra", "omegaconf", "msgspec", "yaml", "typer", "rich", "pytest")
#: Kernels are compiled, whatever the shell says; the tests need no plugin of pytest, and one may be broken there.
_ENV = {"TRITON_INTERPRET": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
_ASK_TORCH = """import torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
print(torch.__version__, torch.version.cuda, name, sep=chr(10))
"""
#: Words of a device's name that tell no two devices of one memory size apart.
_NOISE = re.compile(r"nvidia|tesla|geforce|graphics|generation|gpu|hbm\d*e?|sxm\d*")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
#: Rounds (fresh processes) for budgets below so many seconds; without a budget those of protocol=strict.
_ROUNDS = ((1200.0, 1), (3000.0, 3))
_ALL_ROUNDS = 5
_TESTS_SHARE = 0.35
#: Kept back from the budget for the figures and for a run that is stopped to write its tables.
_MARGIN_S = 15.0
_SETTLE_S = 60.0
_PR_SET_PDEATHSIG = 1
#: Made before any fork: between fork and exec nothing may be imported.
_die_with_parent = partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM)
_NO_TESTS = 5
_DONE, _FAILED, _USAGE, _INTERRUPTED = 0, 1, 2, 130
_SPENT = "the budget is spent"
#: Baseline, is_causal and the speedup meant to be reached on an H100 at n = 131,072, 12 heads, head_dim 64, bfloat16.
_TARGETS = (
    ("flash2", False, "120x, on the way to 230x"), ("flash2", True, "20x, on the way to 37x"),
    ("cudnn", False, "90x"), ("cudnn", True, "15x"),
)  # fmt: skip


class Machine(NamedTuple):
    """The device that is measured: its name, its versions, and in one line why nothing can be measured, or ""."""

    name: str
    versions: str
    problem: str = ""


def gpu_folder(name: str) -> str:
    """Folder name of a device: h100-80gb for NVIDIA H100 80GB HBM3."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join([word for word in words if not _NOISE.fullmatch(word)] or words) or "<gpu>"


def main(words: Sequence[str] | None = None) -> int:
    """Exit code: 0 all done, 1 something failed or was not finished, 2 nothing can be done, 130 interrupted."""
    args = _parser().parse_args(words)
    try:
        return _reference(args, examine(args.device))
    except ValueError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return _USAGE
    except KeyboardInterrupt:
        print("make gpu: interrupted; the same command goes on", file=sys.stderr)
        return _INTERRUPTED


def _reference(args: argparse.Namespace, machine: Machine) -> int:
    begun_s, budget_s = time.monotonic(), parse_budget(args.budget)
    folder = Path(args.out).absolute() if args.out else Path("results/reference") / gpu_folder(machine.name)
    steps = commands(folder, budget_s, args.device, [*args.words, "--fresh" if args.fresh else "--resume"], args.only)
    print(f"machine: {machine.name or 'no GPU'} ({machine.versions})\nresults: {folder}", flush=True)
    if args.dry_run:
        if machine.problem:
            print(f"nothing can be measured here: {machine.problem}; this is what a GPU would do")
        limit = f"a budget of {args.budget.strip()}" if budget_s else "no limit of time (GPU_BUDGET=8m)"
        print(f"with {limit} and {' '.join(f'{key}={value}' for key, value in _ENV.items())}, one after the other:")
        print("\n".join(f"\n{name}\n  {shlex.join(command)}" for name, command in steps.items()))
        return _DONE
    if machine.problem:
        raise ValueError(machine.problem)
    ended = {}
    for name, command in steps.items():
        left_s = None
        if budget_s is not None:
            end_s = _TESTS_SHARE * budget_s if name == "tests" else budget_s - _MARGIN_S
            left_s = end_s - (time.monotonic() - begun_s)
            if left_s <= 0:
                ended[name] = f"not begun: {_SPENT}"
                continue
        print(f"\n== {name}", flush=True)
        code = run_until(command, left_s)
        if code == _NO_TESTS and name == "tests" and args.device == "cpu":
            code = _DONE  # All are skipped without a GPU. On a GPU that is a failure.
        ended[name] = {_DONE: "done", _FAILED: "some failed", None: f"stopped: {_SPENT}"}.get(code, f"exit code {code}")
        if name == "tests" and code and not args.keep_going:
            print(f"tests: {ended[name]}, so nothing is measured; KEEP_GOING=1 measures all the same")
            return _FAILED
    _draw([folder / name for name in steps if (ROOT / folder / name / "journal.jsonl").exists()])
    print("\n== in short")
    print("\n".join([*(f"{name}: {end}" for name, end in ended.items()), *target_lines(ROOT / folder / STEPS[0])]))
    return _DONE if set(ended.values()) == {"done"} else _FAILED


def commands(
    folder: Path, budget_s: float | None, device: str, more: Sequence[str] = (), only: str = ""
) -> dict[str, list[str]]:
    """Command of each step in order: the tests, then the runs, with more words at the end of each.

    A short budget takes one round and leaves out the tests marked slow. The tests read no conftest.py but that of
    tests/gpu: what the others import may be missing on the machine of the GPU. Raises ValueError on unknown steps.
    """
    chosen = only.split(",") if only else STEPS
    if unknown := set(chosen) - set(STEPS):
        raise ValueError(f"--only={only}: there is no step {min(unknown)!r}; allowed: {', '.join(STEPS)}")
    rounds = next((few for below_s, few in _ROUNDS if budget_s is not None and budget_s < below_s), _ALL_ROUNDS)
    tests = ["pytest", "--confcutdir=tests/gpu", "-rfEs", *(["-m", "not slow"] if rounds == 1 else [])]
    found = {"tests": [*tests, f"--junitxml={folder / 'tests.xml'}", "tests/gpu"]}
    settings = [f"device={device}", "protocol=strict", f"protocol.rounds={rounds}"]
    for name in (step for step in STEPS if step in chosen):
        found[name] = ["hyperbench", "run", f"sweep=gpu_{name}", *settings, f"out={folder / name}", *more]
    return {name: [sys.executable, "-m", *words] for name, words in found.items()}


def parse_budget(text: str) -> float | None:
    """Seconds of a budget such as 90s, 8m or 1h; None for no budget. Raises ValueError, one line, on anything else."""
    if not text.strip():
        return None
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smh])", text.strip())
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if seconds <= 0:
        raise ValueError(f"GPU_BUDGET={text} must be a positive number with s, m or h, such as 90s, 8m or 1h")
    return seconds


def examine(device: str) -> Machine:
    """Ask a process of its own about the machine, so that no CUDA context of ours stands alongside the measurements."""
    python = f"Python {sys.version.split()[0]}"
    if sys.version_info < (3, 11):  # noqa: UP036
        return Machine("", python, f"Python 3.11 or newer is needed, this is {python}")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        return Machine("", python, f"{sys.executable} has no {', '.join(missing)}")
    asked = subprocess.run([sys.executable, "-P", "-c", _ASK_TORCH], capture_output=True, text=True, check=False)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        return Machine("", python, f"PyTorch does not start here: {last}")
    torch, cuda, name = asked.stdout.split("\n")[:3]
    versions = f"{python}, torch {torch}, CUDA {cuda}"
    if device == "cpu":
        return Machine("cpu", versions)
    return Machine(name, versions, "" if name else f"PyTorch {torch} sees no CUDA GPU here")


def run_until(command: Sequence[str], limit_s: float | None) -> int | None:
    """Exit code of a command run in the checkout, None if it was stopped after limit_s seconds.

    It is stopped by SIGINT, upon which a run writes its tables. Ctrl-C here is passed on, waited for and raised again;
    a session of its own keeps the terminal from sending it a second time, which would end a run at once.
    """
    process = subprocess.Popen(
        list(command), cwd=ROOT, env={**os.environ, **_ENV}, start_new_session=True, preexec_fn=_die_with_parent
    )
    try:
        return process.wait(limit_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_SETTLE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
        if isinstance(reason, KeyboardInterrupt):
            raise
        return None


def _draw(runs: Sequence[Path]) -> None:
    """Draw the figures of runs; without plotly the commands that draw them elsewhere are printed."""
    lines = [["hyperbench", "plot", "--run", str(run), "--format", "png,html"] for run in runs]
    try:
        importlib.import_module("plotly")
    except ImportError:
        print("\nfigures are left for later, on any machine with plotly and kaleido:")
        print("\n".join(f"  {shlex.join(line)}" for line in lines))
    else:
        for line in lines:
            run_until([sys.executable, "-m", *line], None)


def target_lines(run: Path, seq_len: int = 131072) -> list[str]:
    """Speedups of a run's forward pass alongside their targets, one a line; "not measured" where there is none."""
    from hyperbench.analyze.rounds import add_speedup
    from hyperbench.store.files import StoreError
    from hyperbench.store.run_folder import load_run

    found = []
    for baseline, is_causal, target in _TARGETS:
        try:
            rows = add_speedup(load_run(run).passes, baseline).query("method == 'hyper' and `pass` == 'forward'")
            speedup = rows[(rows["seq_len"] == seq_len) & (rows["is_causal"] == is_causal)]["speedup"].median()
        except StoreError:
            speedup = float("nan")
        measured = f"{speedup:.1f}x" if speedup > 0 else "not measured"
        masking = "causal" if is_causal else "not causal"
        found.append(f"forward, {masking}, n = {seq_len:,}, over {baseline}: {measured} (target {target})")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_reference", description=__doc__)
    given = os.environ.get("GPU_BUDGET", "")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="more words for every `hyperbench run`")
    parser.add_argument("--budget", default=given, metavar="TIME", help="time for all, such as 90s, 8m or 1h")
    parser.add_argument("--dry-run", action="store_true", help="print the machine and the commands")
    parser.add_argument("--keep-going", action="store_true", help="measure although tests failed")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--only", default="", metavar="STEP,...", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the logic")
    parser.add_argument("--out", metavar="DIR", help="folder of the results; default: results/reference/<gpu>")
    return parser


if __name__ == "__main__":
    sys.exit(main())
