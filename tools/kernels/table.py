"""Ahead-of-time compilation of every kernel for sm_80 and sm_90, with no device: registers, spills, shared memory,
machine instructions of the inner loop.

`python -m tools.kernels.table` prints the table (`--json` as data); `make kernels` calls it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hyperattn_core.triton_backend.support import MAX_HEAD_DIM, interpreted
from hyperattn_core.triton_backend.tuning.configs import ARCHITECTURES
from tools.kernels.builds import TYPES, Build, builds
from tools.kernels.instructions import inner_loop

#: Shared memory that one program may take, in bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
#: The sizes that vectorised loads depend on; at run time Triton looks at the values.
_DIVISIBLE = 16
#: Queries times keys that instructions are counted for.
_PAIRS = 16 * 64
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel and the instructions it uses.

    Attributes:
        loop_instructions: machine instructions of the inner loop that a warp issues for 16 queries and 64 keys; 0 of a
            kernel that has no such loop.
    """

    kernel: str
    label: str
    arch: int
    num_warps: int
    num_stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: tuple[str, ...]
    loop_instructions: int


def compile_kernel(build: Build, arch: int) -> Any:
    """Compile for an architecture (80, 90), as Triton's own object."""
    attributes = {
        (index,): [["tt.divisibility", _DIVISIBLE]]
        for index, (name, kind) in enumerate(build.types.items())
        if kind.startswith("*") or "stride" in name
    }
    source = ASTSource(build.kernel, build.types, constexprs=build.constants, attrs=attributes)
    options = {
        "num_warps": build.num_warps, "num_stages": build.num_stages, "maxnreg": build.max_registers,
        "enable_fp_fusion": build.fuses_float64,
    }  # fmt: skip
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def compile_build(build: Build, arch: int) -> Usage:
    """Compile for an architecture (80, 90) and read off what the code needs."""
    compiled = compile_kernel(build, arch)
    registers, spills = resources(compiled.asm["cubin"])
    return Usage(
        kernel=build.name,
        label=build.label,
        arch=arch,
        num_warps=build.num_warps,
        num_stages=build.num_stages,
        registers=registers,
        spill_bytes=spills,
        shared_bytes=int(compiled.metadata.shared),
        instructions=tuple(
            name for name in ("wgmma", "mma.sync", "cp.async", "fma.rn.f64") if name in compiled.asm["ptx"]
        ),
        loop_instructions=_loop_instructions(build, compiled.asm["cubin"]),
    )


def _loop_instructions(build: Build, cubin: bytes) -> int:
    """Instructions of a step of BLOCK_M queries and BLOCK_N keys, in the measure of Usage."""
    if not {"BLOCK_M", "BLOCK_N"} <= build.constants.keys():
        return 0
    step = build.constants["BLOCK_M"] * build.constants["BLOCK_N"]
    return round(inner_loop(cubin).total() * build.num_warps * _PAIRS / step)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of local memory per thread (spills) of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([_CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    registers = [int(found) for found in re.findall(r"REG:(\d+)", text)]
    local = [int(found) for found in re.findall(r"(?:STACK|LOCAL):(\d+)", text)]
    if not registers:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text!r}")
    return max(registers), max(local)


def main(arguments: list[str] | None = None) -> int:
    """Compile and print; 1 if a kernel spills or needs more shared memory than there is."""
    parser = argparse.ArgumentParser(prog="python -m tools.kernels.table", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the table as data")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dtype", choices=list(TYPES.values()), default="bf16", help="of q, k and v")
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64], metavar="D")
    parser.add_argument("--candidates", action="store_true", help="every configuration that autotuning tries")
    given = parser.parse_args(arguments)
    if not all(1 <= head_dim <= MAX_HEAD_DIM for head_dim in given.head_dim):
        parser.error(f"--head-dim must be from 1 to {MAX_HEAD_DIM}, got {' '.join(map(str, given.head_dim))}")
    if interpreted():
        # The decorated functions of this process are the interpreter's.
        env = {**os.environ, "TRITON_INTERPRET": "0"}
        words = sys.argv[1:] if arguments is None else arguments
        return subprocess.run([sys.executable, "-m", __spec__.name, *words], env=env).returncode
    dtype = next(dtype for dtype, name in TYPES.items() if name == given.dtype)
    rows = [
        compile_build(build, arch)
        for arch in given.arch
        for head_dim in given.head_dim
        for build in builds(arch, dtype, head_dim, every_candidate=given.candidates)
    ]
    if given.json:
        found = {"triton": triton.__version__, "kernels": [dataclasses.asdict(row) for row in rows]}
        print(json.dumps(found, indent=1))
    else:
        print(
            f"Triton {triton.__version__}; registers and spills per thread, shared memory per program,"
            " machine instructions of the inner loop for 16 queries and 64 keys"
        )
        print(
            f"{'arch':6}{'kernel':9}{'built for':32}{'warps':>6}{'stages':>7}{'regs':>6}{'spill':>7}{'shared':>8}"
            f"{'loop':>6}  uses"
        )
        for row in rows:
            print(
                f"sm_{row.arch:<3}{row.kernel:9}{row.label:32}{row.num_warps:6}{row.num_stages:7}{row.registers:6}"
                f"{row.spill_bytes:7}{row.shared_bytes:8}{row.loop_instructions or '':>6}  {' '.join(row.instructions)}"
            )
    return int(any(row.spill_bytes or row.shared_bytes > SHARED_LIMIT[row.arch] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
