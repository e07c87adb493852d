"""The steps of `make gpu` as commands: the tests, the runs and their figures. Pure but for the names of sweeps."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from hyperbench.config import catalog
from hyperbench.gpu_reference.budget import BACKWARD, Choice, Scale, step_names, step_s

#: The strictest protocol there is.
PROTOCOL = "strict"
TESTS_OUTPUT = "tests.txt"
TESTS_COUNTS = ".tests.xml"
#: No other conftest.py than that of the tests themselves: what those import may be missing on the machine of the GPU.
_PYTEST = ("-m", "pytest", "--confcutdir=tests/gpu", "-rfEs", "--durations=5")
_GRADS_UP_TO = 32768


@dataclass(frozen=True)
class Run:
    """One `hyperbench run`: the name of its folder, the words of its command line, and its likely seconds."""

    name: str
    words: tuple[str, ...]
    estimate_s: float
    has_figures: bool = True

    def command(self, folder: Path) -> list[str]:
        """The command that measures it, or goes on with it, under the folder of the machine."""
        return [sys.executable, "-m", "hyperbench", "run", *self.words, f"out={folder / self.name}", "--resume"]

    def plot_command(self, folder: Path, fmt: str) -> list[str]:
        """The command that draws its figures from its tables."""
        return [sys.executable, "-m", "hyperbench", "plot", "--run", str(folder / self.name), "--format", fmt]


def tests_command(folder: Path, *, slow: bool) -> list[str]:
    """The command that runs the tests on the GPU and counts them."""
    selection = [] if slow else ["-m", "not slow"]
    return [sys.executable, *_PYTEST, *selection, f"--junitxml={folder / TESTS_COUNTS}", "tests/gpu"]


def runs(scale: Scale, choice: Choice, device: str, flops_per_s: float) -> tuple[Run, ...]:
    """The runs of a choice in their order; one whose sweep does not exist is left out."""
    lengths = _listed(choice.forward)
    largest = str(scale.seq_lens[-1])
    common = (
        f"device={device}", f"protocol={PROTOCOL}", f"protocol.rounds={choice.rounds}", f"shape.heads={scale.heads}",
    )  # fmt: skip
    forward = ("passes=[forward]", f"protocol.budget_s.forward={choice.point_budget_s:g}")
    backward = (
        f"passes=[{','.join(BACKWARD)}]",
        *(f"protocol.budget_s.{name}={choice.point_budget_s:g}" for name in BACKWARD),
        f"error.grad_max_seq_len={_GRADS_UP_TO}",
    )
    exact = "method=[flash2,cudnn,hyper]"
    words = {
        "fig4": ("sweep=fig4", *common, exact, f"shape.seq_len={lengths}", *forward),
        "long": (
            "sweep=single", *common[:3], "shape.heads=1", "method=[hyper]", f"shape.seq_len={scale.long_seq_len}",
            "is_causal=false,true", *forward, "error.seeds=[0]",
        ),
        "min_seq_len": (
            "sweep=min_seq_len", *common, f"shape.seq_len={largest}",
            f"method.hyper.min_seq_len={_listed(scale.leaves)}", *forward,
        ),
        "stages": (
            "sweep=stages", *common, "method=[hyper]", f"shape.seq_len={lengths}", *forward, "error.seeds=[0]",
        ),
        "fig4-backward": ("sweep=fig4", *common, exact, f"shape.seq_len={_listed(choice.backward)}", *backward),
    }  # fmt: skip
    found = []
    sweeps = catalog.names("sweep")
    for name in step_names(choice):
        if words[name][0].removeprefix("sweep=") in sweeps:
            seconds = step_s(name, scale, choice, flops_per_s)
            # What a step sets itself goes before what the scale sets for all.
            keys = {word.partition("=")[0] for word in words[name]}
            more = tuple(word for word in scale.settings if word.partition("=")[0] not in keys)
            found.append(Run(name, (*words[name], *more), seconds, has_figures=name != "long"))
    return tuple(found)


def _listed(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
