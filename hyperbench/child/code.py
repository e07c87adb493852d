"""Code that a process runs: where its packages lie, and the fingerprint of what measures and is measured."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from hyperbench.store.provenance import OWN_PACKAGES, code_fingerprint


@dataclass(frozen=True)
class Code:
    """The code of a process: `files` are those of its packages, by name, `fingerprint` see `code_fingerprint`."""

    fingerprint: str
    files: dict[str, str]


def package_files() -> dict[str, str]:
    """The file of each of our packages that this process imports or would import, by name; nothing is imported."""
    specs = {name: importlib.util.find_spec(name) for name in OWN_PACKAGES}
    return {name: spec.origin for name, spec in specs.items() if spec is not None and spec.origin is not None}


def running_code(targets: Iterable[str] = ()) -> Code:
    """The code of this process, that of `targets` (functions by their full names) included."""
    return Code(code_fingerprint(targets), package_files())


def admit_current_folder(targets: Iterable[str]) -> None:
    """Put the current folder last on the path, if any of `targets` is a function from outside, which may lie there."""
    if any(target.partition(".")[0] not in OWN_PACKAGES for target in targets) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def other_files(found: dict[str, str], expected: dict[str, str]) -> str:
    """The packages that are others than expected, in words; "" if there is none."""
    return ", ".join(
        f"{name} from {found.get(name, 'nowhere')}, not {expected.get(name, 'nowhere')}"
        for name in OWN_PACKAGES
        if found.get(name) != expected.get(name)
    )


def difference(found: Code, expected: Code) -> str:
    """The reason why a process does not run the code that is expected, in words; "" if it does."""
    if others := other_files(found.files, expected.files):
        return f"it takes {others}"
    if found.fingerprint != expected.fingerprint:
        return f"the code has changed since the run began (fingerprint {expected.fingerprint}, now {found.fingerprint})"
    return ""
