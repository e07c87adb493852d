"""The A/A floor across processes: what it is, when it is measured, and a cache that does no harm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.measure.cpu_load import CpuTimes
from hyperbench.measure.runner import noise_floor, session
from hyperbench.store import environment, provenance, run_folder
from tests.helpers.made_runs import tiny

FACTS = {"aa_floor": 0.02, "timer_resolution_ns": 40, "flush_ratio": None}
FOUND = noise_floor.Noise(FACTS, quiet=True)


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
    found = noise_floor.measure_noise(probes, "cuda", {"OMP_NUM_THREADS": "2"}).facts
    assert found == {"aa_floor": pytest.approx(0.1), "timer_resolution_ns": 40, "flush_ratio": 2.5}
    assert len(probes.asked) == noise_floor.PROCESSES
    assert {request["noise"]["device"] for request, _ in probes.asked} == {"cuda"}
    assert all(env == {"OMP_NUM_THREADS": "2"} for _, env in probes.asked)
    environment.checked(found)


def test_what_was_measured_is_taken_again_for_the_same_machine_and_for_a_while(tmp_path: Path) -> None:
    measured: list[int] = []

    def measure() -> noise_floor.Noise:
        measured.append(1)
        return FOUND

    path, now = tmp_path / "some" / "noise.json", [1e9]

    def ask(torch: str = "2.13") -> dict[str, Any]:
        return noise_floor.noise_of({"torch": torch}, measure, path, lambda: now[0])

    assert ask() == ask() == FACTS
    assert len(measured) == 1
    assert ask("2.14") == FACTS
    assert len(measured) == 2
    now[0] += 30 * 24 * 3600
    assert ask() == FACTS
    assert len(measured) == 3
    now[0] -= 60 * 24 * 3600
    ask()
    assert len(measured) == 4


@pytest.mark.parametrize("others_s", [0.0, 5.0])
def test_what_a_busy_machine_gave_is_not_kept_for_later(tmp_path: Path, others_s: float) -> None:
    cpus = provenance.available_cpus()

    def measure() -> noise_floor.Noise:
        times = iter([CpuTimes(0.0, 0.0, 0.0), CpuTimes(10.0, 1.0 + others_s * cpus, 1.0)])
        return noise_floor.measure_noise(Probes(1.0, 1.0, 2.0, 1.0), "cpu", {}, lambda: next(times))

    assert noise_floor.noise_of({}, measure, tmp_path / "noise.json")["aa_floor"] == 1.0
    assert (tmp_path / "noise.json").exists() == (others_s == 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "[" * 100_000, '{"KEY": 3}', '{"KEY": {"aa_floor": "x"}}',
        '{"KEY": {"aa_floor": -1, "timer_resolution_ns": 1, "measured_s": 1e9}}',
        '{"KEY": {"aa_floor": NaN, "timer_resolution_ns": 1, "measured_s": 1e9}}',
        '{"KEY": {"aa_floor": 0.1, "timer_resolution_ns": true, "measured_s": 1e9}}',
    ],
)  # fmt: skip
def test_a_damaged_cache_is_measured_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "noise.json"
    path.write_text(text.replace("KEY", '{\\"a\\": 1}'))
    assert noise_floor.noise_of({"a": 1}, lambda: FOUND, path, lambda: 1e9) == FACTS
    assert noise_floor.noise_of({"a": 1}, lambda: pytest.fail("measured again"), path, lambda: 1e9) == FACTS


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert noise_floor.noise_of({}, lambda: FOUND, tmp_path / "file" / "noise.json") == FACTS


def test_a_run_of_several_rounds_has_a_floor_and_one_of_one_round_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(noise_floor, "busy_warning", lambda *_: "")
    assert session.noise_here(tiny(), Probes()) == {}
    several = tiny("protocol.rounds=2")
    probes = Probes(1.0, 1.0, 1.05, 1.0)
    found = session.noise_here(several, probes)
    assert found["aa_floor"] == pytest.approx(0.05)
    assert probes.asked[0][1]["OMP_NUM_THREADS"] == "1"
    assert session.noise_here(several, Probes()) == found
    folder = session.open_folder(several, tmp_path / "run", resume=False, fresh=False, noise=lambda _: found)
    assert run_folder.read_environment(folder)["aa_floor"] == found["aa_floor"]
