"""reference.json: what was planned for a machine, by which code, and how each step ended: so `make gpu` goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperbench.gpu_reference.budget import Choice
from hyperbench.gpu_reference.steps import TESTS_OUTPUT
from hyperbench.store.files import atomic_write_text
from hyperbench.store.run_folder import is_run_folder

STATE = "reference.json"


@dataclass
class State:
    """The state of a machine's folder.

    Attributes:
        origin: what must be the same for the folder to go on: device, versions, code, budget, scale.
        choice: what is measured.
        tests: how the tests ended: passed, failed, skipped, finished, seconds; None before they ran.
        steps: step -> how it ended.
    """

    origin: dict[str, Any]
    choice: Choice
    tests: dict[str, Any] | None = None
    steps: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it by temporary file and rename."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / STATE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def read(folder: Path) -> State | None:
    """The state of a folder, None where nothing was begun. Raises ValueError, one line, if it is damaged."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        chosen = data["choice"]
        choice = Choice(
            tuple(chosen["forward"]), tuple(chosen["backward"]), tuple(chosen["extras"]), chosen["point_budget_s"]
        )
        return State(data["origin"], choice, data["tests"], data["steps"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); FRESH=1 measures everything again") from None


def differing(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs between two origins, in words; empty if nothing does."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return ", ".join(f"{key} ({one.get(key)} there, {other.get(key)} here)" for key in keys)


def clear(folder: Path, names: tuple[str, ...]) -> None:
    """Remove the runs of these names, the state and the tests' output from a folder, and nothing else."""
    for name in names:
        if is_run_folder(folder / name):
            shutil.rmtree(folder / name)
    for name in (STATE, TESTS_OUTPUT):
        (folder / name).unlink(missing_ok=True)
