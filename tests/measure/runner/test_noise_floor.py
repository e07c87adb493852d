"""The A/A floor across processes: what it is, and when it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.measure.runner import noise_floor
from hyperbench.measure.runner.open_run import open_folder
from hyperbench.store import environment
from hyperbench.store.run_folder import read_environment
from tests.helpers.made_runs import tiny


class Probes:
    """Each process asked gives the next median."""

    def __init__(self, *medians_ms: float, flush_ratio: float | None = None) -> None:
        self.left = list(medians_ms)
        self.flush_ratio = flush_ratio
        self.asked: list[tuple[dict[str, Any], dict[str, str]]] = []

    def __call__(self, request: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
        self.asked.append((request, dict(env)))
        full = request["noise"]["full"]
        return {
            "noise": {
                "median_ms": self.left.pop(0),
                "resolution_ns": 40 if full else None,
                "flush_ratio": self.flush_ratio if full else None,
            }
        }


def test_the_floor_is_the_largest_deviation_from_the_middle() -> None:
    assert noise_floor.aa_floor([1.0, 1.0, 1.0]) == 0.0
    assert noise_floor.aa_floor([2.0, 2.2, 1.9]) == pytest.approx(0.1)
    assert noise_floor.aa_floor([0.0, 0.0]) == 0.0
    with pytest.raises(ValueError, match="two processes"):
        noise_floor.aa_floor([1.0])


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6), st.floats(0.1, 10))
def test_the_floor_has_no_unit_and_no_order(medians: list[float], unit: float) -> None:
    floor = noise_floor.aa_floor(medians)
    assert floor >= 0
    assert noise_floor.aa_floor([m * unit for m in reversed(medians)]) == pytest.approx(floor, abs=1e-9)


def test_every_median_comes_from_a_process_of_its_own_under_the_settings_of_the_run() -> None:
    probes = Probes(1.0, 1.0, 1.1, 1.0, flush_ratio=2.5)
    found = noise_floor.measure_noise(probes, "cuda", {"OMP_NUM_THREADS": "2"})
    assert found == {"aa_floor": pytest.approx(0.1), "timer_resolution_ns": 40, "flush_ratio": 2.5}
    assert len(probes.asked) == noise_floor.PROCESSES
    assert {request["noise"]["device"] for request, _ in probes.asked} == {"cuda"}
    assert all(env == {"OMP_NUM_THREADS": "2"} for _, env in probes.asked)
    environment.checked(found)


def test_a_run_of_several_rounds_has_a_floor_and_one_of_one_round_asks_nobody(tmp_path: Path) -> None:
    assert noise_floor.noise_of_run(replace(tiny(), ask=Probes())) == {}
    probes = Probes(1.0, 1.0, 1.05, 1.0)
    run = replace(tiny("protocol.rounds=2"), ask=probes)
    folder = tmp_path / "run"
    open_folder(run, folder).close()
    assert read_environment(folder)["aa_floor"] == pytest.approx(0.05)
    assert probes.asked[0][1]["OMP_NUM_THREADS"] == "1"
    # It is that of the whole run: going on asks nobody.
    open_folder(run, folder, resume=True).close()
    assert len(probes.asked) == noise_floor.PROCESSES
