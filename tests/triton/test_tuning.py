"""The choice among configurations: measured once, kept for that GPU, Triton and kernel alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hyperattn_core.triton_backend import configure
from hyperattn_core.triton_backend.tuning import choice as choices
from hyperattn_core.triton_backend.tuning.choice import Choice, Trial, cache_file, choose
from hyperattn_core.triton_backend.tuning.configs import (
    ARCHITECTURES,
    AttendConfig,
    BackwardConfig,
    backward_candidates,
    candidates,
    with_tile,
)
from tests.helpers.triton_inputs import Call

OPTIONS = candidates(90, torch.bfloat16, 64)
RIGHT, WRONG = torch.ones(8), torch.ones(8) * 1.5
OTHERS = "its results are not those of the others"


class Stopwatch:
    """Times and results that are given, and which configurations were measured."""

    def __init__(self, times: dict[AttendConfig, float], wrong: Sequence[AttendConfig] = ()) -> None:
        self.times = times
        self.wrong = wrong
        self.asked: list[AttendConfig] = []

    def __call__(self, config: AttendConfig) -> Trial | str:
        self.asked.append(config)
        time = self.times.get(config, 9.0)
        outputs = (RIGHT, WRONG if config in self.wrong else RIGHT * 1.001)
        return "it is too large" if time == float("inf") else Trial(time, outputs)


def choice(
    stopwatch: Stopwatch | None, cache: Path | None, key: str = "attend/a GPU/3.7.1/bfloat16/64"
) -> Choice[AttendConfig]:
    """A choice for bfloat16, d = 64 on an sm_90."""
    return choose(OPTIONS, key, trial=stopwatch, cache=cache)


def test_the_fastest_is_taken_and_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "new folder" / "kernels.json"
    stopwatch = Stopwatch({OPTIONS[2]: 1.0})
    assert choice(stopwatch, cache) == Choice(OPTIONS[2], "tuned")
    assert set(stopwatch.asked) == set(OPTIONS)
    again = Stopwatch({})
    assert choice(again, cache) == Choice(OPTIONS[2], "cached")
    assert choice(None, cache) == Choice(OPTIONS[2], "cached")
    assert not again.asked
    assert [path.name for path in cache.parent.iterdir()] == ["kernels.json"]


def test_a_choice_holds_for_its_key_alone(tmp_path: Path) -> None:
    cache = tmp_path / "kernels.json"
    choice(Stopwatch({OPTIONS[2]: 1.0}), cache)
    assert choice(Stopwatch({OPTIONS[1]: 1.0}), cache, "attend/another GPU") == Choice(OPTIONS[1], "tuned")
    assert choice(None, cache) == Choice(OPTIONS[2], "cached")


def test_another_kernel_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "kernels.json"
    choice(Stopwatch({OPTIONS[2]: 1.0}), cache)
    monkeypatch.setattr(choices, "_fingerprint", lambda: "other code")
    assert choice(Stopwatch({OPTIONS[3]: 1.0}), cache) == Choice(OPTIONS[3], "tuned")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"x": {"y": 1}}', "\x00\xff", "null"])
def test_a_damaged_cache_is_replaced(text: str, tmp_path: Path) -> None:
    cache = tmp_path / "kernels.json"
    cache.write_text(text, encoding="utf-8")
    assert choice(Stopwatch({OPTIONS[1]: 1.0}), cache).origin == "tuned"
    assert choice(None, cache) == Choice(OPTIONS[1], "cached")
    assert json.loads(cache.read_text(encoding="utf-8"))


def test_a_cached_configuration_that_is_no_candidate_is_ignored(tmp_path: Path) -> None:
    cache = tmp_path / "kernels.json"
    choice(Stopwatch({OPTIONS[1]: 1.0}), cache)
    known = json.loads(cache.read_text(encoding="utf-8"))
    cache.write_text(json.dumps(dict.fromkeys(known, "512x512, 64 warps, 9 stages")), encoding="utf-8")
    assert choice(Stopwatch({OPTIONS[2]: 1.0}), cache) == Choice(OPTIONS[2], "tuned")


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert choice(Stopwatch({OPTIONS[1]: 1.0}), tmp_path / "file" / "kernels.json") == Choice(OPTIONS[1], "tuned")


def test_what_cannot_run_is_not_chosen(tmp_path: Path) -> None:
    times = dict.fromkeys(OPTIONS, float("inf")) | {OPTIONS[-1]: 5.0}
    assert choice(Stopwatch(times), tmp_path / "a.json").config == OPTIONS[-1]
    nothing = dict.fromkeys(OPTIONS, float("inf"))
    assert choice(Stopwatch(nothing), tmp_path / "b.json").config == OPTIONS[0]
    assert not (tmp_path / "b.json").exists()


def test_results_that_others_do_not_share_are_refused_however_fast(tmp_path: Path) -> None:
    fast = {OPTIONS[2]: 1.0, OPTIONS[1]: 2.0}
    found = choice(Stopwatch(fast, wrong=[OPTIONS[2]]), tmp_path / "a.json")
    assert found == Choice(OPTIONS[1], "tuned", (f"not {OPTIONS[2]}: {OTHERS}",))
    assert str(found) == f"{OPTIONS[1]} (tuned; not {OPTIONS[2]}: {OTHERS})"
    # The default itself may be the one that is wrong.
    assert choice(Stopwatch({OPTIONS[0]: 1.0}, wrong=[OPTIONS[0]]), tmp_path / "b.json").config == OPTIONS[1]


def test_of_two_that_differ_the_default_is_taken(tmp_path: Path) -> None:
    times = dict.fromkeys(OPTIONS, float("inf")) | {OPTIONS[0]: 5.0, OPTIONS[3]: 1.0}
    found = choice(Stopwatch(times, wrong=[OPTIONS[3]]), tmp_path / "a.json")
    assert (found.config, found.origin) == (OPTIONS[0], "tuned")
    assert found.refused[2] == f"not {OPTIONS[3]}: {OTHERS}"
    assert found.refused[:2] == tuple(f"not {option}: it is too large" for option in OPTIONS[1:3])


def test_a_nan_agrees_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "WRONG", torch.full((8,), float("nan")))
    found = choice(Stopwatch({OPTIONS[2]: 1.0}, wrong=[OPTIONS[2]]), tmp_path / "a.json")
    assert len(found.refused) == 1
    nowhere = choice(Stopwatch({}, wrong=OPTIONS), tmp_path / "b.json")
    assert (nowhere.config, nowhere.origin, len(nowhere.refused)) == (OPTIONS[0], "default", len(OPTIONS))
    assert not (tmp_path / "b.json").exists()


def test_nothing_measured_gives_the_default(tmp_path: Path) -> None:
    assert choice(None, tmp_path / "kernels.json") == Choice(OPTIONS[0], "default")
    assert choice(None, None) == Choice(OPTIONS[0], "default")


@pytest.mark.parametrize("options_of", [candidates, backward_candidates])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
def test_candidates_are_few_and_told_apart_by_their_text(
    options_of: Callable[..., tuple[Any, ...]], arch: int, dtype: torch.dtype, head_dim: int
) -> None:
    """The text is what a cache and a run's environment hold."""
    options = options_of(arch, dtype, head_dim)
    assert 1 <= len(options) <= 6
    assert len({str(option) for option in options}) == len(options)


def test_where_choices_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HYPERATTN_CACHE_DIR", raising=False)
    assert cache_file() == tmp_path / "cache" / "hyperattn" / "kernels.json"
    monkeypatch.setenv("HYPERATTN_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_file() == tmp_path / "mine" / "kernels.json"


def test_a_plan_of_another_tile_size() -> None:
    wide = AttendConfig(128, 64, 8, 5, 128)
    assert with_tile(wide, 128) is wide
    assert with_tile(wide, 16) == AttendConfig(16, 64, 4, 5, None)


@pytest.mark.parametrize(
    ("prepare", "options"),
    [
        (configure._attended, (AttendConfig(16, 16, 4, 1), AttendConfig(32, 32, 4, 1))),
        (configure._gradients, (BackwardConfig(16, 16, 16, 4, 1), BackwardConfig(16, 32, 32, 4, 1))),
    ],
    ids=["attend", "backward"],
)
def test_what_is_timed_gives_the_same_with_every_configuration(
    prepare: Callable[..., Any], options: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configure, "_TUNING_SHAPE", (1, 1, 60))
    monkeypatch.setattr(configure, "HyperAttentionParams", Call().parameters)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(configure.triton.testing, "do_bench", lambda launch, **options: 1.0)
    one, other = (configure._tried(prepare, torch.device("cpu"), torch.float32, 16, option) for option in options)
    assert isinstance(one, Trial)
    assert isinstance(other, Trial)
    assert all(x.norm() > 0 for x in one.outputs)
    assert choices._agree(one, other)
    assert not choices._agree(one, dataclasses.replace(other, outputs=tuple(1.02 * x for x in other.outputs)))


class TestOnAGpu:
    """The choice as a call makes it, on a GPU that is pretended and whose launches are given."""

    device = torch.device("cuda", 0)

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """An H100 on which nothing was chosen yet."""
        monkeypatch.setenv("HYPERATTN_CACHE_DIR", str(tmp_path))
        monkeypatch.delenv("HYPERATTN_AUTOTUNE", raising=False)
        monkeypatch.setattr(configure, "_remembered", {})
        monkeypatch.setattr(configure, "interpreted", lambda: False)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(configure.triton.testing, "do_bench", lambda launch, **options: launch())

    @pytest.mark.parametrize("error", [RuntimeError("PassManager::run failed"), KeyError("maxnreg"), MemoryError()])
    def test_a_candidate_that_fails_costs_the_call_nothing(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def prepare(device: torch.device, dtype: torch.dtype, head_dim: int, config: Any) -> Any:
            place = OPTIONS.index(config)
            if place == 1:
                raise error
            return lambda: fail() if place == 2 else 9.0 - place, (RIGHT,)

        def fail() -> None:
            raise error

        monkeypatch.setattr(configure, "_attended", prepare)
        found = configure.chosen(self.device, torch.bfloat16, 64)
        assert (found.config, found.origin, len(found.refused)) == (OPTIONS[-1], "tuned", 2)
        assert all(type(error).__name__ in line for line in found.refused)
        assert configure.describe() == {"attend bfloat16 d=64": str(found)}

    def test_the_backward_pass_has_a_choice_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        options = backward_candidates(90, torch.bfloat16, 64)
        monkeypatch.setattr(
            configure, "_gradients", lambda *call: (lambda: 1.0 if call[3] == options[1] else 2.0, (RIGHT,))
        )
        assert configure.backward_config(self.device, torch.bfloat16, 64) == options[1]
        assert configure.describe() == {"backward bfloat16 d=64": f"{options[1]} (tuned)"}
        # Another process finds what this one has measured.
        monkeypatch.setattr(configure, "_remembered", {})
        monkeypatch.setattr(configure, "_gradients", lambda *call: pytest.fail("it was measured again"))
        assert configure.backward_config(self.device, torch.bfloat16, 64) == options[1]

    @pytest.mark.parametrize("tracing", ["fake tensors", "make_fx", "a captured graph", "HYPERATTN_AUTOTUNE=0"])
    def test_nothing_is_measured_there_and_the_default_is_not_remembered(
        self, tracing: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(configure, "_attended", lambda *call: pytest.fail("it was measured"))
        found = []

        def call(x: torch.Tensor) -> torch.Tensor:
            found.append(configure.chosen(self.device, torch.bfloat16, 64))
            return x

        if tracing == "make_fx":
            make_fx(call)(RIGHT)
        elif tracing == "fake tensors":
            with FakeTensorMode():
                call(RIGHT)
        else:
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: tracing == "a captured graph")
            monkeypatch.setenv("HYPERATTN_AUTOTUNE", str(int(tracing == "a captured graph")))
            call(RIGHT)
        assert found == [Choice(OPTIONS[0], "default")]
        assert configure.describe() == {}
