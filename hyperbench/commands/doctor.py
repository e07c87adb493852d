"""`hyperbench doctor`: devices, libraries, methods and why one cannot run, timer and noise of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyperbench.commands.output import print_json, print_pairs, stdout
from hyperbench.config import catalog
from hyperbench.measure.cpu_load import busy_warning, read_cpu_times
from hyperbench.measure.runner import noise_floor
from hyperbench.measure.runner.locks import DeviceBusyError, DeviceLock, busy_devices, device_key
from hyperbench.measure.runner.prepare import ask_probe
from hyperbench.store import environment, provenance

if TYPE_CHECKING:
    from rich.console import Console

_NOISY = 0.05
#: A read after an L2 flush that works takes longer than a warm one by more than this factor.
_FLUSH_EFFECT = 1.05
#: A clock that times a flush with each call gives half the time of a flush to a call that does nothing.
_FLUSH_LEAK = 0.3


def doctor(*, as_json: bool) -> int:
    """Print what `examine` finds; 1 if something is wrong."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        print_report(report, stdout())
    return 0 if report["ok"] else 1


def examine() -> dict[str, Any]:
    """Ask the machine; plain data. Raises ConfigError if PyTorch does not start.

    `ok`: HyperAttention and its baseline can run on the device that `device=auto` takes.
    """
    # Not the user's own: their code is run where it is asked for.
    methods = catalog.entries("method", shipped=True)
    # What is heavy would take the time of a run that is measuring.
    busy = busy_devices()
    request = {
        "methods": [{"name": name, "target": data["_target_"], "hypers": []} for name, data in methods.items()],
        "inputs": [], "measure_rate": not busy, "diagnose": not busy, "triton": True,
    }  # fmt: skip
    device_files, begun = catalog.entries("device"), read_cpu_times()
    facts = ask_probe(request, {k: str(v) for k, v in device_files["cpu"]["env"].items()})
    device = "cuda" if facts["cuda_available"] else "cpu"
    env = {k: str(v) for k, v in device_files[device]["env"].items()}
    measured: dict[str, Any] = {}
    if not busy:
        busy = busy_warning(begun, read_cpu_times(), provenance.available_cpus())
        try:
            # Raises where another process has begun to measure.
            with DeviceLock(device_key(device, facts)):
                measured = noise_floor.measure_noise(ask_probe, device, env)
        except DeviceBusyError as error:
            busy = str(error)
    problems = [*facts["problems"], *facts.get("missing", {}).values()]
    found = provenance.collect(facts, {"device": device, **measured}, env)
    runnable = {
        name: {where: facts["methods"][data["_target_"]]["unsupported"][where] for where in ("cpu", "cuda")}
        for name, data in methods.items()
        if data["_target_"] in facts["methods"]
    }
    return {
        "ok": not problems and all(runnable[name][device] is None for name in ("flash2", "hyper")),
        "device": device, "environment": {k: v for k, v in found.items() if v is not None}, "methods": runnable,
        "triton_backend": {"runs": facts["triton_backend"] is None, "reason": facts["triton_backend"]},
        "problems": problems, "attention_flops_per_s": facts.get("flops_per_s"), "timer": facts.get("timer"),
        "noise": {**measured, "processes": noise_floor.PROCESSES} if measured else None, "busy": busy,
    }  # fmt: skip


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print the report as text."""
    from rich.text import Text

    device = report["device"]
    print_pairs(environment.shown(report["environment"]).items(), console)
    console.print(Text(f"\nmethods on {device}", style="bold"))
    told = ((name, reasons[device]) for name, reasons in report["methods"].items())
    print_pairs(((name, "runs" if why is None else f"cannot run: {why}") for name, why in told), console)
    kernels = report["triton_backend"]
    console.print(Text("\nTriton kernels of HyperAttention", style="bold"))
    console.print(Text("run here" if kernels["runs"] else f"cannot run here: {kernels['reason']}"))
    console.print(Text("\ntimer and noise", style="bold"))
    for line in _timer_lines(report):
        console.print(Text(line))
    for problem in report["problems"]:
        console.print(Text(f"problem: {problem}", style="bold red"))


def _timer_lines(report: dict[str, Any]) -> list[str]:
    """Speed, timer and noise, as far as they were measured."""
    timer, found, device = report["timer"], report["noise"], report["device"]
    lines = []
    if timer is not None:
        lines += [
            f"exact attention runs at {report['attention_flops_per_s'][device] / 1e9:,.0f} GFLOP/s here",
            f"clock resolution {timer['resolution_ns']:,.0f} ns",
            f"the same call measured twice, {timer['pairs']} times: its medians differ by {timer['floor']:.2%} at "
            "most; smaller differences mean nothing here",
        ]
    if found is not None:
        lines.append(
            f"the same call in {found['processes']} fresh processes: their medians lie within {found['aa_floor']:.2%} "
            "of the middle one (the A/A floor)"
        )
    else:
        lines.append("not measured, so as not to disturb the run that is measuring")
    worst = max(timer["floor"] if timer else 0.0, found["aa_floor"] if found else 0.0)
    if worst > _NOISY:
        lines.append("this machine is noisy: close other programs, or take more rounds (protocol=strict)")
    if report["busy"]:
        lines.append(report["busy"])
    return lines + (flush_lines(timer) if timer else [])


def flush_lines(timer: dict[str, Any]) -> list[str]:
    """The effect of the L2 flush on a read, if there is a flush, and a warning if it is timed itself."""
    lines = []
    if timer["flush_ratio"] is not None:
        lines.append(f"a read after the L2 flush takes {timer['flush_ratio']:.2f} times that of a warm one")
        if timer["flush_ratio"] < _FLUSH_EFFECT:
            lines.append("the L2 flush has no effect here: times are those of inputs that lie in the cache already")
    if "flush_ms" in timer and timer["empty_ms"] > _FLUSH_LEAK * timer["flush_ms"]:
        lines.append(
            f"a call that does nothing takes {timer['empty_ms']:.3g} ms and the L2 flush {timer['flush_ms']:.3g} ms: "
            "the flush is timed with the call, and every time is too long by it"
        )
    return lines
