"""Settings of the process: compared after every stretch of a method's code, put back, and the culprit is named."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from hyperbench.measure.worker import settings as settings_module
from hyperbench.measure.worker.settings import KeepingClock, Settings, SettingsError, in_words, read
from tests.helpers import settings_changers
from tests.helpers.fake_clock import FakeClock
from tests.helpers.measured_group import Measured, all_of, item, odd

CHANGES = settings_changers.CHANGES


def changer(name: str, **options: object) -> object:
    """A point of a method that changes settings."""
    return item(f"tests.helpers.settings_changers.{name}", exact=True, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def all_back() -> Iterator[None]:
    """Whatever a test changes is put back."""
    settings = Settings()
    yield
    settings.restore()


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_is_seen_and_put_back(name: str) -> None:
    before, settings = read(), Settings()
    CHANGES[name]()
    assert read() != before
    changes = settings.restore()
    assert changes
    assert read() == before
    assert settings.restore() == {}
    assert all(key in in_words(changes) for key in changes)
    assert "0x" not in in_words(changes)


@pytest.mark.parametrize("name", CHANGES)
def test_a_method_that_changes_settings_is_told_and_the_others_are_measured_as_if_it_were_not_there(name: str) -> None:
    before = read()
    done = Measured(changer(name), odd("exact", exact=True))
    assert read() == before
    assert done.statuses("exact") == all_of("ok")
    # Gradients are off within a forward pass, which has no use for them: there that changes nothing.
    wrong = [p for p, status in done.statuses(name).items() if status == "incorrect"]
    assert wrong == (["backward", "forward_backward"] if name == "gradients" else list(all_of("")))
    message = done.timings(name)["backward"].message
    assert message.startswith("the method changed settings that all methods of the process share: ")
    assert message.endswith("with isolate: true it gets a process of its own")
    assert len(done.keys) == len(set(done.keys))
    assert set(done.keys) == done.expected


def test_another_method_never_sees_the_change() -> None:
    threads = torch.get_num_threads()
    settings_changers.seen.clear()
    Measured(changer("threads"), item("tests.helpers.settings_changers.witness", exact=True))
    assert set(settings_changers.seen) == {threads}


def test_a_change_in_a_timed_call_costs_the_pass_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    for _ in range(2):  # its properties are looked for the first time alone
        monkeypatch.setattr(settings_changers, "_calls", 0)
        done = Measured(changer("later"), passes=("forward",))
    calls = settings_changers._calls
    assert done.statuses("later") == {"forward": "ok"}
    monkeypatch.setattr(settings_changers, "_calls", 0)
    monkeypatch.setattr(settings_changers, "CALLS_BEFORE", calls - 1)
    done = Measured(changer("later"), odd("exact", exact=True), passes=("forward",))
    assert done.statuses("later") == {"forward": "incorrect"}
    assert f"threads ({threads} before, {threads + 1} after)" in done.timings("later")["forward"].message
    assert done.statuses("exact") == {"forward": "ok"}
    assert torch.get_num_threads() == threads


def test_a_change_in_the_backward_pass_leaves_the_forward_pass_its_time() -> None:
    done = Measured(changer("in_the_backward_pass"))
    assert done.statuses("in_the_backward_pass") == {**all_of("incorrect"), "forward": "ok"}
    assert "float32_matmul_precision (highest before, medium after)" in (
        done.timings("in_the_backward_pass")["backward"].message
    )


def test_the_settings_of_an_isolated_method_stay_and_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setitem(CHANGES, "threads_once", lambda: torch.set_num_threads(threads + 1))
    done = Measured(changer("threads_once"), passes=("forward",), isolated=True)
    timing = done.timings("threads_once")["forward"]
    assert timing.status == "ok"
    assert timing.conditions["settings"] == f"threads={threads + 1}"
    assert timing.conditions["threads"] == torch.get_num_threads() == threads + 1


def test_our_own_code_runs_under_the_standard_settings_and_those_of_the_method_come_back() -> None:
    settings = Settings()
    settings.isolated = True
    torch.set_default_dtype(torch.float64)
    with settings.standard():
        assert torch.get_default_dtype() is torch.float32
    assert torch.get_default_dtype() is torch.float64
    assert settings.own == {"default_dtype": "torch.float64"}


def test_what_has_changed_settings_is_not_run_again() -> None:
    settings, runs = Settings(), 0
    for _ in range(2):
        with pytest.raises(SettingsError), settings.kept("mine"):  # noqa: PT012
            runs += 1
            torch.set_default_dtype(torch.float64)
    assert runs == 1
    with settings.kept("other"):
        runs += 1
    assert runs == 2


def test_a_change_is_told_rather_than_the_error_that_it_led_to_but_an_interrupt_passes() -> None:
    settings = Settings()
    with pytest.raises(SettingsError) as told, settings.kept():  # noqa: PT012
        torch.set_default_device("meta")
        raise ValueError("a consequence")
    assert told.value.restored
    assert str(told.value.__cause__) == "a consequence"
    with pytest.raises(ValueError, match="its own"), settings.kept():
        raise ValueError("its own")
    with pytest.raises(KeyboardInterrupt), settings.kept():
        raise KeyboardInterrupt


def test_a_setting_that_cannot_be_put_back_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: object) -> None:
        raise RuntimeError

    table = settings_module._table()
    monkeypatch.setitem(table, "garbage_collector", (gc.isenabled, refuse))
    settings = Settings()
    try:
        with pytest.raises(SettingsError) as told, settings.kept():
            gc.disable()
        assert not told.value.restored
        gc.enable()
        monkeypatch.setitem(CHANGES, "stubborn", gc.disable)
        done = Measured(changer("stubborn"), odd("exact", exact=True), passes=("forward",))
        assert done.measurement.poisoned
        assert done.statuses("stubborn") == {"forward": "incorrect"}
        assert done.statuses("exact") == {}
    finally:
        gc.enable()


def test_the_settings_are_looked_at_outside_the_time_of_a_call() -> None:
    settings, clock = Settings(), FakeClock()
    keeping = KeepingClock(clock, settings)
    assert keeping.time_ms(lambda: None) == clock.time_ms(lambda: None)
    assert keeping.now_s is not None
    with pytest.raises(SettingsError):
        keeping.time_ms(lambda: torch.set_default_dtype(torch.float64))
    assert torch.get_default_dtype() is torch.float32
