"""Machine instructions of a compiled kernel's inner loop, counted in its disassembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton

_NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)[^;]*;")
_BRANCH = re.compile(r"\bBRA[^;]*`\((\.L_x_\d+)\)")
_LABEL = re.compile(r"^(\.L_x_\d+):")
#: Matrix products on tensor cores, and what takes their place in float32.
_PRODUCTS = ("HMMA", "HGMMA", "FFMA")


def inner_loop(cubin: bytes) -> Counter[str]:
    """Counts of the instructions of the innermost loop that has most products; empty if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        run = subprocess.run([_NVDISASM, "--print-code", path], capture_output=True, text=True, check=True)
    return loop_of(run.stdout)


def loop_of(text: str) -> Counter[str]:
    """The inner loop in a disassembly."""
    names: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(names)
        elif instruction := _INSTRUCTION.search(line):
            names.append(instruction[1])
            branch = _BRANCH.search(line)
            # A branch to itself is the padding behind a kernel's end.
            if branch and branch[1] in labels and labels[branch[1]] < len(names) - 1:
                loops.append((labels[branch[1]], len(names)))
    innermost = [
        Counter(name for name in names[start:end] if name != "NOP")
        for start, end in loops
        if not any((start <= other and last < end) or (start < other and last <= end) for other, last in loops)
    ]
    return max(innermost, key=lambda loop: tuple(loop[name] for name in _PRODUCTS), default=Counter())
