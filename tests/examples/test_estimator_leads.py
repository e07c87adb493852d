"""Leads: the prototypes are the library's estimator where they change nothing, and exact where nothing is left out."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import estimator_leads
from estimator_leads import Head, Lead

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention
from hyperattn_core.functional import make_plan

LEAF, N = 64, 256


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads with two key heads, (1, H, 256, 16)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, N, 16, generator=generator) for heads in (4, 2, 2))
    return 2 * q, k, v


def estimate(inputs: tuple[Tensor, Tensor, Tensor], lead: Lead, index: int) -> tuple[Tensor, float]:
    """The estimate of one head by a lead."""
    q, k, v = inputs
    params = HyperAttentionParams(
        lead.block_size or 1, lead.sample_size, min_seq_len=LEAF, sampling="probed", pairing=lead.pairing
    )
    plan = None if lead.flat else make_plan(q, k, params, 1, is_causal=True)
    head: Head = estimator_leads.head_of(q, k, v, index)
    return estimator_leads.estimate(head, estimator_leads.nodes_of(head, plan, index, lead, LEAF, 1), lead, LEAF)


@pytest.mark.parametrize("pairing", ["bucket", "routed"])
def test_the_baseline_is_the_library(inputs: tuple[Tensor, Tensor, Tensor], pairing: str) -> None:
    lead = Lead("baseline", 32, 16, pairing=pairing)  # type: ignore[arg-type]
    params = HyperAttentionParams(32, 16, min_seq_len=LEAF, sampling="probed", pairing=lead.pairing)
    expected = hyper_attention(*inputs, is_causal=True, seed=1, params=params, enable_gqa=True)
    for index in (0, 3):
        out, keys = estimate(inputs, lead, index)
        torch.testing.assert_close(out, expected[0, index], rtol=1e-4, atol=1e-5)
        assert (LEAF + 1) / 2 < keys < (LEAF + 1) / 2 + 2 * (32 + 16)


@pytest.mark.parametrize(
    "lead",
    [
        Lead("window", 32, 16, window=N),
        Lead("first tokens", 32, 16, sinks=N),
        Lead("flat", 0, N, flat=True, shrink=True),
        Lead("k-means", N // 2, 16, kmeans=32, centroid=64),
        Lead("samples", 16, N, cap=1.0, centroid=16),
    ],
    ids=lambda lead: lead.name,
)
def test_leads_are_exact_where_all_keys_are_met(inputs: tuple[Tensor, Tensor, Tensor], lead: Lead) -> None:
    out, keys = estimate(inputs, lead, 1)
    exact = exact_attention(*inputs, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, exact[0, 1], rtol=1e-4, atol=1e-5)
    assert (N + 1) / 2 <= keys <= (N + 1) / 2 + 1.5  # centroids that stand for nothing


def test_a_mean_key_is_exact_where_keys_are_alike(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = inputs
    same = (q, k[:, :, :1].expand_as(k).contiguous(), v[:, :, :1].expand_as(v).contiguous())
    lead = Lead("capped", 0, 8, flat=True, cap=1.0, centroid=estimator_leads.WHOLE)
    torch.testing.assert_close(estimate(same, lead, 0)[0], same[2][0, 0])
    dropped = estimate(inputs, replace(lead, centroid=0), 0)[1]
    assert estimate(inputs, lead, 0)[1] == dropped + (N - LEAF) / N


def test_the_folder_holds_every_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimator_leads, "SIZES", ((LEAF, 32, 32),))
    generator = torch.Generator().manual_seed(0)
    rows = {part: torch.randn(heads, N, 64, generator=generator) for part, heads in (("q", 2), ("k", 1), ("v", 1))}
    path = tmp_path / "capture.safetensors"
    save_file({f"layers.5.{part}": x for part, x in rows.items()}, path)
    words = ["--capture", str(path), "--out", str(tmp_path / "out")]
    assert estimator_leads.main(words) == 0
    told = capsys.readouterr().out
    with (tmp_path / "out" / "errors.csv").open() as file:
        found = list(csv.DictReader(file))
    names = [lead.name for lead in estimator_leads.leads(LEAF, 32, 32, N)]
    assert len(set(names)) == len(names)
    assert len(found) == 3 * (1 + 2 * len(names))  # a head of the layer and two Gaussian ones
    assert all(f"| {name} |" in told for name in names)
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert str(tmp_path) not in json.dumps(environment["settings"])
    assert estimator_leads.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bad_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "short.safetensors"
    save_file({f"layers.0.{part}": torch.zeros(1, 96, 64) for part in "qkv"}, path)
    for capture, message in ((path, "a power of two from 1,024"), (tmp_path / "nowhere", "nowhere")):
        assert estimator_leads.main(["--capture", str(capture), "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
        assert not (tmp_path / "out").exists()
