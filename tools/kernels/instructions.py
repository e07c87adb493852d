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
    return loop_of(disassembly(cubin))


def disassembly(cubin: bytes) -> str:
    """The machine code of a compiled kernel as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        run = subprocess.run([_NVDISASM, "--print-code", path], capture_output=True, text=True, check=True)
    return run.stdout


def loop_of(text: str) -> Counter[str]:
    """The inner loop in a disassembly."""
    names, loops = _loops(text)
    innermost = [
        Counter(names[start:end])
        for start, end in loops
        if not any((start <= other and last < end) or (start < other and last <= end) for other, last in loops)
    ]
    return max(innermost, key=lambda loop: tuple(loop[name] for name in _PRODUCTS), default=Counter())


def largest_loop(text: str) -> int:
    """Instructions of the longest loop in a disassembly, with the loops within it; 0 if there is none."""
    return max((end - start for start, end in _loops(text)[1]), default=0)


def length(text: str) -> int:
    """Instructions in a disassembly."""
    return len(_loops(text)[0])


def _loops(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The names of the instructions, but for those that do nothing, and the loops as places among them."""
    names: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(names)
        elif (instruction := _INSTRUCTION.search(line)) and instruction[1] != "NOP":
            names.append(instruction[1])
            branch = _BRANCH.search(line)
            # A branch to itself is the padding behind a kernel's end.
            if branch and branch[1] in labels and labels[branch[1]] < len(names) - 1:
                loops.append((labels[branch[1]], len(names)))
    return names, loops
