"""The algorithm stands alone: it brings in PyTorch and nothing else, of the harness least of all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hyperattn_core

PRINT_MODULES = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def modules_after(statement: str, folder: Path) -> set[str]:
    """Top-level modules that are loaded in a new interpreter after a statement, run in a folder."""
    root = str(Path(hyperattn_core.__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    finished = subprocess.run(
        [sys.executable, "-c", f"{statement}; {PRINT_MODULES}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(finished.stdout.split())


def test_importing_the_algorithm_loads_pytorch_and_nothing_else(tmp_path: Path) -> None:
    with_torch = modules_after("import torch", tmp_path)
    with_core = modules_after("import hyperattn_core", tmp_path)
    assert "torch" in with_core
    extra = with_core - with_torch - set(sys.stdlib_module_names)
    assert extra == {"hyperattn_core"}
