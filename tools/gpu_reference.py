"""`make gpu`: a check of the kernels, then ordinary `hyperbench run` commands, in the order of what is worth most.

The commands depend on the options and the machine alone, and each run resumes: the same command goes on where it was
stopped. An archive of the folder is renewed after every step.
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
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: Checked first, and not timed where they are wrong: the library's default estimator and the paper's.
OURS = ("hyper", "hyper_paper")
_ALL = ("flash2", "cudnn", *OURS)
_HEADLINE = "sweep=fig4 shape.seq_len=131072"
#: Methods and words of each run, whose folder is its name.
RUNS = {
    "headline": (_ALL, f"{_HEADLINE} passes=[forward]"),
    "both_passes": (_ALL, f"{_HEADLINE} passes=[forward_backward] error.grad_max_seq_len=32768"),
    "stages": (OURS, "sweep=stages shape.seq_len=131072 error.seeds=[0]"),
    "leaves": (
        OURS[:1],
        "sweep=min_seq_len shape.seq_len=131072 method.hyper.min_seq_len=1024,2048,4096 passes=[forward]",
    ),
    "fig4": (
        _ALL, "sweep=fig4 shape.seq_len=131072,65536,32768,16384,8192,4096 error.grad_max_seq_len=32768",
    ),
    "long": (OURS, "shape.seq_len=1048576 shape.heads=1 is_causal=false,true passes=[forward] error.seeds=[0]"),
}  # fmt: skip
STEPS = (*RUNS, "tests")
#: The run of five rounds (fresh processes), all others have one; of a budget it leaves a part to the steps after it.
_ROUNDS = {"fig4": 5}
_SHARE = {"fig4": 0.8}
_CHECK_S = 180.0
#: Runs whose speedups are printed in the end.
_SHOWN = ("headline", "both_passes")
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
#: How long a run that is stopped may take to write its tables; as much of a budget is kept back.
_SETTLE_S = 20.0
_PR_SET_PDEATHSIG = 1
#: Made before any fork: between fork and exec nothing may be imported.
_die_with_parent = partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM)
_NO_TESTS = 5
_DONE, _FAILED, _USAGE, _INTERRUPTED = 0, 1, 2, 130
_SPENT = "the budget is spent"


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
    folder = Path(args.out or Path("results/reference") / gpu_folder(machine.name)).absolute()
    archive = Path(args.archive or f"{folder}.tar.gz").absolute()
    steps = commands(folder, args.device, args.words, args.only)
    print(
        f"machine: {machine.name or 'no GPU'} ({machine.versions})\nresults: {folder}\narchive: {archive}", flush=True
    )
    if args.dry_run:
        if machine.problem:
            print(f"nothing can be measured here: {machine.problem}; this is what a GPU would do")
        limit = f"a budget of {args.budget.strip()}" if budget_s else "no limit of time (GPU_BUDGET=8m)"
        print(f"with {limit} and {' '.join(f'{key}={value}' for key, value in _ENV.items())}, one after the other:")
        print("\n".join(f"\n{name}\n  {shlex.join(command)}" for name, command in steps.items()))
        return _DONE
    if machine.problem:
        raise ValueError(machine.problem)
    folder.mkdir(parents=True, exist_ok=True)

    def left_s() -> float | None:
        return None if budget_s is None else budget_s - _SETTLE_S - (time.monotonic() - begun_s)

    ended: dict[str, str] = {}
    for name in steps:
        wrong = [method for method in OURS if ended.get(f"check_{method}", "done") != "done"]
        command = commands(folder, args.device, args.words, args.only, wrong)[name]
        limit_s = left_s()
        if not command:
            ended[name] = f"left out: {' and '.join(wrong)} failed the check"
        elif limit_s is not None and limit_s <= 0:
            ended[name] = f"not begun: {_SPENT}"
        else:
            print(f"\n== {name}", flush=True)
            try:
                ended[name] = _ending(name, run_until(command, _limit(name, limit_s)), args.device)
            finally:
                pack(folder, archive)
    _draw([folder / name for name in steps if (folder / name / "journal.jsonl").exists()], left_s)
    pack(folder, archive)
    print("\n== in short", flush=True)
    for name in _SHOWN:
        if (folder / name / "journal.jsonl").exists():
            run_until([sys.executable, "-m", "hyperbench", "show", "--run", str(folder / name)], _SETTLE_S)
    print("\n".join(f"{name}: {end}" for name, end in ended.items()))
    return _DONE if set(ended.values()) == {"done"} else _FAILED


def commands(
    folder: Path, device: str, more: Sequence[str] = (), only: str = "", wrong: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Command of each step in order: the checks, the runs, the tests; an empty one where no method is left to time.

    More words KEY=VALUE replace those of the runs. The tests read no conftest.py but that of tests/gpu: what the others
    import may be missing on the machine of the GPU. Raises ValueError on unknown steps.
    """
    chosen = only.split(",") if only else STEPS
    if unknown := set(chosen) - set(STEPS):
        raise ValueError(f"--only={only}: there is no step {min(unknown)!r}; allowed: {', '.join(STEPS)}")
    found = {
        f"check_{method}": ["tools.gpu_check", method, f"--device={device}", f"--out={folder / f'check_{method}.txt'}"]
        for method in OURS
    }
    for name, (methods, words) in RUNS.items():
        timed = [method for method in methods if method not in wrong]
        settings = [f"device={device}", "protocol=strict", f"protocol.rounds={_ROUNDS.get(name, 1)}"]
        every = [*words.split(), f"method=[{','.join(timed)}]", *settings, f"out={folder / name}", *more]
        by_key = {word.split("=", 1)[0]: word for word in every}
        found[name] = ["hyperbench", "run", *by_key.values(), "--resume"] if timed else []
    found["tests"] = ["pytest", "--confcutdir=tests/gpu", "-rfEs", f"--junitxml={folder / 'tests.xml'}", "tests/gpu"]
    return {
        name: [sys.executable, "-m", *words] if words else []
        for name, words in found.items()
        if name in chosen or name not in STEPS
    }


def _limit(name: str, left_s: float | None) -> float | None:
    """The most seconds of a step, of those that are left."""
    if name not in STEPS:
        return _CHECK_S if left_s is None else min(_CHECK_S, left_s)
    return None if left_s is None else left_s * _SHARE.get(name, 1.0)


def _ending(name: str, code: int | None, device: str) -> str:
    if code is None:
        return "stopped: its time was up"
    if code == _NO_TESTS and name == "tests" and device == "cpu":
        code = _DONE  # All are skipped without a GPU. On a GPU that is a failure.
    return {_DONE: "done", _FAILED: "some failed"}.get(code, f"exit code {code}")


def pack(folder: Path, archive: Path) -> None:
    """Renew the archive of a folder; a kill on the way leaves the one before."""
    part = archive.with_name(f"{archive.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(part, "w:gz") as file:
        file.add(folder, folder.name, filter=lambda x: None if folder.parent / x.name in (archive, part) else x)
    part.replace(archive)


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


def _draw(runs: Sequence[Path], left_s: Callable[[], float | None]) -> None:
    """Draw the figures of runs; without plotly, or time, the commands that draw them elsewhere are printed."""
    for run in runs:
        line, limit_s = ["hyperbench", "plot", "--run", str(run)], left_s()
        if importlib.util.find_spec("plotly") and (limit_s is None or limit_s > 0):
            run_until([sys.executable, "-m", *line], limit_s)
        else:
            print(f"for later, on any machine with plotly: {shlex.join(line)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_reference", description=__doc__)
    given = os.environ.get("GPU_BUDGET", "")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="words that replace those of every run")
    parser.add_argument("--budget", default=given, metavar="TIME", help="time for all, such as 90s, 8m or 1h")
    parser.add_argument("--dry-run", action="store_true", help="print the machine and the commands")
    parser.add_argument("--only", default="", metavar="STEP,...", help=f"after the checks; of {', '.join(STEPS)}")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the logic")
    parser.add_argument("--out", metavar="DIR", help="folder of the results; default: results/reference/<gpu>")
    parser.add_argument("--archive", metavar="FILE", help="archive of that folder; default: DIR.tar.gz")
    return parser


if __name__ == "__main__":
    sys.exit(main())
