"""The choice among configurations: measured once, kept for that GPU, Triton and kernel alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyperattn_core.triton_backend.tuning import choice as choices
from hyperattn_core.triton_backend.tuning.choice import Choice, cache_file, choose
from hyperattn_core.triton_backend.tuning.configs import ARCHITECTURES, AttendConfig, candidates, with_tile

OPTIONS = candidates(90, torch.bfloat16, 64)


class Stopwatch:
    """Times that are given, and which configurations were measured."""

    def __init__(self, times: dict[AttendConfig, float]) -> None:
        self.times = times
        self.asked: list[AttendConfig] = []

    def __call__(self, config: AttendConfig) -> float:
        self.asked.append(config)
        return self.times.get(config, 9.0)


def choice(stopwatch: Stopwatch | None, cache: Path | None, **changes: str) -> Choice:
    """A choice for bfloat16, d = 64 on an sm_90."""
    facts = {"device_name": "a GPU", "triton_version": "3.7.1"} | changes
    return choose(90, torch.bfloat16, 64, measure=stopwatch, cache=cache, **facts)


def test_the_fastest_is_taken_and_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "new folder" / "attend.json"
    stopwatch = Stopwatch({OPTIONS[2]: 1.0})
    assert choice(stopwatch, cache) == Choice(OPTIONS[2], "tuned")
    assert set(stopwatch.asked) == set(OPTIONS)
    again = Stopwatch({})
    assert choice(again, cache) == Choice(OPTIONS[2], "cached")
    assert choice(None, cache) == Choice(OPTIONS[2], "cached")
    assert not again.asked
    assert [path.name for path in cache.parent.iterdir()] == ["attend.json"]


@pytest.mark.parametrize("changes", [{"device_name": "another GPU"}, {"triton_version": "3.6.0"}])
def test_a_choice_holds_for_its_gpu_and_triton_alone(changes: dict[str, str], tmp_path: Path) -> None:
    cache = tmp_path / "attend.json"
    choice(Stopwatch({OPTIONS[2]: 1.0}), cache)
    assert choice(Stopwatch({OPTIONS[1]: 1.0}), cache, **changes) == Choice(OPTIONS[1], "tuned")
    assert choice(None, cache) == Choice(OPTIONS[2], "cached")


def test_another_kernel_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "attend.json"
    choice(Stopwatch({OPTIONS[2]: 1.0}), cache)
    monkeypatch.setattr(choices, "_fingerprint", lambda: "other code")
    assert choice(Stopwatch({OPTIONS[3]: 1.0}), cache) == Choice(OPTIONS[3], "tuned")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"x": {"y": 1}}', "\x00\xff", "null"])
def test_a_damaged_cache_is_replaced(text: str, tmp_path: Path) -> None:
    cache = tmp_path / "attend.json"
    cache.write_text(text, encoding="utf-8")
    assert choice(Stopwatch({OPTIONS[1]: 1.0}), cache).origin == "tuned"
    assert choice(None, cache) == Choice(OPTIONS[1], "cached")
    assert json.loads(cache.read_text(encoding="utf-8"))


def test_a_cached_configuration_that_is_no_candidate_is_ignored(tmp_path: Path) -> None:
    cache = tmp_path / "attend.json"
    choice(Stopwatch({OPTIONS[1]: 1.0}), cache)
    known = json.loads(cache.read_text(encoding="utf-8"))
    cache.write_text(json.dumps(dict.fromkeys(known, "512x512, 64 warps, 9 stages")), encoding="utf-8")
    assert choice(Stopwatch({OPTIONS[2]: 1.0}), cache) == Choice(OPTIONS[2], "tuned")


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert choice(Stopwatch({OPTIONS[1]: 1.0}), tmp_path / "file" / "attend.json") == Choice(OPTIONS[1], "tuned")


def test_what_cannot_run_is_not_chosen(tmp_path: Path) -> None:
    times = dict.fromkeys(OPTIONS, float("inf")) | {OPTIONS[-1]: 5.0}
    assert choice(Stopwatch(times), tmp_path / "a.json").config == OPTIONS[-1]
    nothing = dict.fromkeys(OPTIONS, float("inf"))
    assert choice(Stopwatch(nothing), tmp_path / "b.json").config == OPTIONS[0]
    assert not (tmp_path / "b.json").exists()


def test_nothing_measured_gives_the_default(tmp_path: Path) -> None:
    assert choice(None, tmp_path / "attend.json") == Choice(OPTIONS[0], "default")
    assert choice(None, None) == Choice(OPTIONS[0], "default")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
def test_candidates_are_few_and_told_apart_by_their_text(arch: int, dtype: torch.dtype, head_dim: int) -> None:
    """The text is what a cache and a run's environment hold."""
    options = candidates(arch, dtype, head_dim)
    assert 1 <= len(options) <= 6
    assert len({str(option) for option in options}) == len(options)


def test_where_choices_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HYPERATTN_CACHE_DIR", raising=False)
    assert cache_file() == tmp_path / "cache" / "hyperattn" / "attend.json"
    monkeypatch.setenv("HYPERATTN_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_file() == tmp_path / "mine" / "attend.json"


def test_a_plan_of_another_tile_size() -> None:
    wide = AttendConfig(128, 64, 8, 5, 128)
    assert with_tile(wide, 128) is wide
    assert with_tile(wide, 16) == AttendConfig(16, 64, 4, 5, None)
