"""Every kernel compiles for A100 and H100 with no device: no spills, shared memory that fits, tensor cores in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from hyperattn_core.triton_backend.tuning.configs import ARCHITECTURES
from tools.kernels.table import SHARED_LIMIT, main

KERNELS = {
    "project", "draw", "hash", "scan", "scatter", "pair", "attend", "merge", "delta", "queries", "keys", "samples",
    "reduce",
}  # fmt: skip
#: Kernels that are matrix products at d = 64.
PRODUCTS = {"hash", "attend", "queries", "keys", "samples"}


def table(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the command, with compiled kernels."""
    finished = subprocess.run(
        [sys.executable, "-m", "tools.kernels.table", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode in (0, 1, 2), finished.stderr
    return finished.returncode, finished.stdout + finished.stderr


def kernels(*arguments: str) -> list[dict[str, Any]]:
    """The rows of the table, none of which may spill."""
    code, text = table("--json", *arguments)
    assert code == 0, text
    rows: list[dict[str, Any]] = json.loads(text)["kernels"]
    return rows


@pytest.fixture(scope="session")
def usual() -> list[dict[str, Any]]:
    """bfloat16, d = 64 and 128."""
    return kernels("--head-dim", "64", "128")


def check_resources(rows: list[dict[str, Any]]) -> None:
    """Every kernel for both architectures, within what each has."""
    for arch in ARCHITECTURES:
        assert {row["kernel"] for row in rows if row["arch"] == arch} == KERNELS
    for row in rows:
        assert row["spill_bytes"] == 0, row
        assert row["registers"] <= 255, row
        assert row["shared_bytes"] <= SHARED_LIMIT[row["arch"]], row


@pytest.mark.slow
def test_no_kernel_spills(usual: list[dict[str, Any]]) -> None:
    check_resources(usual)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--head-dim", "32", "256"), ("--dtype", "fp16")])
def test_nor_in_other_dtypes_and_head_sizes(arguments: tuple[str, ...]) -> None:
    check_resources(kernels(*arguments))


@pytest.mark.slow
def test_tensor_cores(usual: list[dict[str, Any]]) -> None:
    """wgmma on sm_90; mma.sync fed by cp.async on sm_80."""
    for row in usual:
        if row["kernel"] in PRODUCTS and "d=64" in row["label"]:
            wanted = {"wgmma"} if row["arch"] == 90 else {"mma.sync", "cp.async"}
            if "routed" in row["label"]:  # tiles of 16 rows are too small for wgmma
                wanted = {"wgmma"} if "wgmma" in row["instructions"] else {"mma.sync"}
            assert wanted <= set(row["instructions"]), row


@pytest.mark.slow
def test_projections_round_every_product_as_pytorch_does(usual: list[dict[str, Any]]) -> None:
    """A product and a sum in one instruction would make other bits than on a CPU."""
    found = [row["instructions"] for row in usual if row["kernel"] == "project"]
    assert len(found) == 2 * len(ARCHITECTURES)
    assert not any("fma.rn.f64" in instructions for instructions in found)


@pytest.mark.slow
def test_float32_stays_off_tensor_cores() -> None:
    """tf32 would round its inputs to ten bits."""
    rows = kernels("--dtype", "fp32")
    check_resources(rows)
    for row in rows:
        assert not {"wgmma", "mma.sync"} & set(row["instructions"]), row


@pytest.mark.slow
def test_the_printed_table() -> None:
    """Of one architecture and head size: nothing spills, and products of matrices use tensor cores."""
    code, text = table("--arch", "90", "--head-dim", "64")
    lines = text.splitlines()
    assert code == 0
    assert lines[0].startswith("Triton ")
    assert {line.split()[1] for line in lines[2:]} == KERNELS
    assert {line.split()[0] for line in lines[2:]} == {"sm_90"}
    assert {line.split()[1] for line in lines[2:] if "wgmma" in line} >= PRODUCTS


@pytest.mark.parametrize("arguments", [("--arch", "75"), ("--dtype", "fp64"), ("--head-dim", "0")])
def test_bad_arguments(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error:" in last
    assert arguments[0] in last
