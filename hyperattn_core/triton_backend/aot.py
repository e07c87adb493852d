"""Ahead-of-time compilation of every kernel for sm_80 and sm_90, with no device: registers, spills, shared memory.

`python -m hyperattn_core.triton_backend.aot` prints the table (`--json` as data); `make kernels` calls it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.triton_backend import attend_kernels, pair_kernels, plan, plan_kernels
from hyperattn_core.triton_backend.forward import attend_constants, merge_constants
from hyperattn_core.triton_backend.geometry import SORT_TILE, Settings
from hyperattn_core.triton_backend.support import interpreted
from hyperattn_core.triton_backend.tuning import ARCHITECTURES, candidates, default_config

#: Shared memory that one program may take, in bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
#: The sizes that vectorised loads depend on; at run time Triton looks at the values.
_DIVISIBLE = 16


@dataclass(frozen=True)
class Build:
    """One kernel to compile: its arguments' types, compile-time values and launch options."""

    name: str
    kernel: Any
    label: str
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 3
    max_registers: int | None = None


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel needs and which instructions it uses."""

    kernel: str
    label: str
    arch: int
    num_warps: int
    num_stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: tuple[str, ...]


def builds(arch: int, dtype: torch.dtype, head_dim: int, *, every_candidate: bool = False) -> Iterator[Build]:
    """All kernels of the backend as a call with these inputs would launch them on that architecture."""
    kind = _TYPES[dtype]
    params = HyperAttentionParams()
    terms = 1 if dtype == torch.float32 else 3
    shape = f"{kind} d={head_dim}"
    yield Build(
        "hash", plan_kernels.hash_kernel, shape,
        _types(
            plan_kernels.hash_kernel, q=f"*{kind}", k=f"*{kind}", directions=f"*{kind}", ranks="*u8", histograms="*u8"
        ),
        plan.hash_constants(head_dim, terms, params.num_projections), 4,
    )  # fmt: skip
    num_ranks = max(16, 2**params.num_projections)
    for causal in (False, True):
        mask = "causal" if causal else "non-causal"
        yield Build(
            "scan", plan_kernels.scan_kernel, mask,
            _types(plan_kernels.scan_kernel, histograms="*u8", bases="*i32", totals="*i32", table="*i64"),
            plan.scan_constants(causal, num_ranks), 4,
        )  # fmt: skip
        yield Build(
            "scatter", plan_kernels.scatter_kernel, mask,
            _types(
                plan_kernels.scatter_kernel, ranks="*u8", bases="*i32", totals="*i32", data="*i32", table="*i64"
            ),
            {"IS_CAUSAL": causal, "RANKS": num_ranks, "TILE": SORT_TILE}, 4,
        )  # fmt: skip
    for bucket in (True, False):
        yield Build(
            "pair", pair_kernels.pair_kernel, f"causal {'bucket' if bucket else 'rank'}",
            _types(
                pair_kernels.pair_kernel, data="*i32", weights="*fp32", totals="*i32", table="*i64",
                drawn_index="*i32", drawn_weight="*fp32", template="*i32",
            ),
            plan.pair_constants(True, bucket, num_ranks), 4,
        )  # fmt: skip
    configs = candidates(arch, dtype, head_dim) if every_candidate else (default_config(arch, dtype, head_dim),)
    for config in configs:
        for causal in (False, True):
            settings = Settings.of(params, is_causal=causal, tile_size=config.tile_size)
            label = f"{shape} {config.tile_size}x{config.block_n} {'causal' if causal else 'non-causal'}"
            yield Build(
                "attend", attend_kernels.attend_kernel, label,
                _types(
                    attend_kernels.attend_kernel, q=f"*{kind}", k=f"*{kind}", v=f"*{kind}", data="*i32",
                    weights="*fp32", table="*i64", out=f"*{kind}", lse="*fp32", scale="fp32",
                ),
                attend_constants(head_dim, head_dim, settings, config),
                config.num_warps, config.num_stages, config.max_registers,
            )  # fmt: skip
    yield Build(
        "merge", attend_kernels.merge_kernel, shape,
        _types(
            attend_kernels.merge_kernel, out=f"*{kind}", lse="*fp32", leaf_out=f"*{kind}", leaf_lse="*fp32",
            partial_out=f"*{kind}", partial_lse="*fp32", table="*i64",
        ),
        merge_constants(head_dim), 4,
    )  # fmt: skip


def _types(kernel: Any, **types: str) -> dict[str, str]:
    """The signature: what is not named is a 32-bit integer, or a constant where its name is in capitals."""
    return {name: types.get(name, "constexpr" if name.isupper() else "i32") for name in kernel.arg_names}


def compile_build(build: Build, arch: int) -> Usage:
    """Compile for an architecture (80, 90) and read off what the code needs."""
    attributes = {
        (index,): [["tt.divisibility", _DIVISIBLE]]
        for index, (name, kind) in enumerate(build.types.items())
        if kind.startswith("*") or "stride" in name
    }
    source = ASTSource(build.kernel, build.types, constexprs=build.constants, attrs=attributes)
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages, "maxnreg": build.max_registers}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
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
        instructions=tuple(name for name in ("wgmma", "mma.sync", "cp.async") if name in compiled.asm["ptx"]),
    )


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of local memory per thread (spills) of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run(
            [_cuobjdump(), "-res-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
    registers = [int(found) for found in re.findall(r"REG:(\d+)", text)]
    local = [int(found) for found in re.findall(r"(?:STACK|LOCAL):(\d+)", text)]
    if not registers:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text!r}")
    return max(registers), max(local)


@functools.cache
def _cuobjdump() -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def main(arguments: list[str] | None = None) -> int:
    """Compile and print; 1 if a kernel spills or needs more shared memory than there is."""
    parser = argparse.ArgumentParser(prog="python -m hyperattn_core.triton_backend.aot", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the table as data")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dtype", choices=list(_TYPES.values()), default="bf16", help="of q, k and v")
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64], metavar="D")
    parser.add_argument("--candidates", action="store_true", help="every configuration that autotuning tries")
    given = parser.parse_args(arguments)
    if interpreted():
        # The decorated functions of this process are the interpreter's.
        env = {**os.environ, "TRITON_INTERPRET": "0"}
        return subprocess.run([sys.executable, "-m", __spec__.name, *(arguments or sys.argv[1:])], env=env).returncode
    dtype = next(dtype for dtype, name in _TYPES.items() if name == given.dtype)
    rows = [
        compile_build(build, arch)
        for arch in given.arch
        for head_dim in given.head_dim
        for build in builds(arch, dtype, head_dim, every_candidate=given.candidates)
    ]
    if given.json:
        print(
            json.dumps({"triton": triton.__version__, "kernels": [dataclasses.asdict(row) for row in rows]}, indent=1)
        )
    else:
        print(f"Triton {triton.__version__}; registers and spills per thread, shared memory per program")
        print(
            f"{'arch':6}{'kernel':9}{'built for':32}{'warps':>6}{'stages':>7}{'regs':>6}{'spill':>7}{'shared':>8}  uses"
        )
        for row in rows:
            print(
                f"sm_{row.arch:<3}{row.kernel:9}{row.label:32}{row.num_warps:6}{row.num_stages:7}{row.registers:6}"
                f"{row.spill_bytes:7}{row.shared_bytes:8}  {' '.join(row.instructions)}"
            )
    return int(any(row.spill_bytes or row.shared_bytes > SHARED_LIMIT[row.arch] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
