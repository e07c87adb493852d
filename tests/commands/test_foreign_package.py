"""A package of somebody else, from its folder to tables and a figure: by the command line and its worker processes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.helpers.commands import Call
from tests.helpers.made_runs import TINY, last_of

PACKAGE = """
import torch
from torch.nn.functional import scaled_dot_product_attention


def local(q, k, v, *, is_causal, window=16):
    raise AssertionError("what prepare gives is called instead")


def prepare(q, k, v, *, is_causal, window):
    at = torch.arange(q.shape[1], device=q.device)
    apart = at.unsqueeze(1) - at
    mask = (apart.abs() < window) & ((apart >= 0) | (not is_causal))

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return attend


local.prepare, local.layout = prepare, "bnhd"
"""
MINE = "# @package method.local\n_target_: my_package.local\ndescription: attention in windows\nwindow: 16\n"


@pytest.mark.slow
def test_a_package_is_measured_shown_exported_and_drawn_by_its_parameter(call: Call, tmp_path: Path) -> None:
    (tmp_path / "my_package.py").write_text(PACKAGE)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "local.yaml").write_text(MINE)
    words = ("shape.seq_len=64", "method=[flash2,local]", "method.local.window=4,8,64", "passes=[forward]", "out=run")
    missing = ("+method.gone._target_=no_such_package.attention",)
    answer = call("run", *last_of(*TINY, *words, *missing))
    assert answer.code == 1
    assert "warning: method gone: _target_=no_such_package.attention cannot be imported" in answer.err
    shown = call("show", "--run", "run").out
    assert "window" in shown
    assert "gone: error: _target_=no_such_package.attention cannot be imported" in shown
    assert "Not in the times: the set-up of local" in shown
    assert call("export", "--run", "run", "--format", "csv", "--out", "csv").code == 0
    lines = Path("csv/timings.csv").read_text().splitlines()
    rows = [row for row in csv.DictReader(lines) if row["method"] == "local"]
    assert {r["window"] for r in rows} == {"4", "8", "64"}
    assert {r["status"] for r in rows} == {"ok"}
    assert all(float(r["setup_ms"]) > 0 for r in rows)
    assert call("plot", "sweep", "method=local", "--run", "run", "--out", "figures").code == 0
    assert "window" in Path("figures/sweep.html").read_text()
