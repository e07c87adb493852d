"""Anybody's method: its layout, set-up, draws, missing causal form and leaks, beside others that go on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbench.config.types import CallOptions
from hyperbench.measure.methods import method as registry
from hyperbench.measure.work_items import WorkItem, with_defaults
from hyperbench.store import tables
from tests.helpers import foreign_methods
from tests.helpers.made_records import a_point
from tests.helpers.measured_group import PASSES, Measured, all_of, item, odd
from tests.helpers.quick import small_and_quick as small_and_quick

BNHD = CallOptions(layout="bnhd")
LEAKING = CallOptions(allow_leak=True)


def foreign(name: str, **options: Any) -> WorkItem:
    """A point of a foreign method."""
    return item(f"tests.helpers.foreign_methods.{name}", **options)


def reason(found: Measured, name: str, status: str) -> str:
    """The one reason for which a method has no time, while another beside it has."""
    assert set(found.statuses(name).values()) == {status}
    assert found.statuses("exact") == all_of("ok")
    assert set(found.keys) == found.expected
    (text,) = {timing.message for timing in found.timings(name).values()}
    assert "\n" not in text
    return text


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_method_of_another_layout_gets_contiguous_tensors_of_it_and_its_answers_are_compared(is_causal: bool) -> None:
    found = Measured(
        foreign("of_tokens_and_says_so", exact=True, is_causal=is_causal),
        foreign("of_tokens", exact=True, is_causal=is_causal, options=BNHD),
        odd("exact", exact=True, is_causal=is_causal),
        protocol={"input_copies": 2, "input_copies_bytes": 2**20},
    )
    for name in ("of_tokens_and_says_so", "of_tokens", "exact"):
        assert found.statuses(name) == all_of("ok"), found.timings(name)["forward"].message
        errors = found.errors(name)
        assert max(errors[f"{x}_rel_fro"].value or 0.0 for x in ("out", "dq", "dk", "dv")) < 1e-5


WRONG = [
    ("no_such_package.attention", {}, "error", "_target_=no_such_package.attention cannot be imported: "),
    ("tests.helpers.odd_methods.missing", {}, "error", "_target_=tests.helpers.odd_methods.missing cannot be imported"),
    ("tests.helpers.odd_methods.wrong_shape", {}, "incorrect", "the output has shape (1, 2, 39, 8), not (1, 2, 40, 8)"),
    ("tests.helpers.foreign_methods.in_another_layout", {}, "incorrect", "layout=bnhd is for a method of that layout"),
    ("tests.helpers.odd_methods.exact", {"options": BNHD}, "incorrect", "(batch, seq_len, heads, head_dim)"),
    ("tests.helpers.foreign_methods.of_tokens", {}, "incorrect", "the axes must be (batch, heads, seq_len, head_dim)"),
    ("tests.helpers.odd_methods.not_written", {}, "unsupported", "head_dim 8 is not supported"),
    ("tests.helpers.foreign_methods.prepared_badly", {}, "error", "must return a callable f(q, k, v), not a Tensor"),
    ("tests.helpers.foreign_methods.prepared_by_values", {}, "incorrect", "a set-up that goes by the values"),
]


@pytest.mark.parametrize(("target", "changes", "status", "words"), WRONG)
def test_what_is_wrong_with_a_method_is_one_line_and_the_others_go_on(
    target: str, changes: dict[str, Any], status: str, words: str
) -> None:
    shape = {"kv_heads": 2}
    one = item(target, **shape, **changes)
    if one.point.method == "exact":
        found = Measured(one, item("tests.helpers.odd_methods.a_bit_off", **shape))
        assert set(found.statuses("exact").values()) == {status}
        assert found.statuses("a_bit_off") == all_of("ok")
        assert words in found.timings("exact")["forward"].message
        return
    told = reason(Measured(one, odd("exact", exact=True, **shape)), one.point.method, status)
    assert words in told, told


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_set_up_is_made_for_each_set_of_inputs_and_is_no_part_of_a_time(is_causal: bool) -> None:
    foreign_methods.prepared.prepared.clear()
    found = Measured(
        foreign("prepared", hyper={"window": 64}, exact=True, is_causal=is_causal),
        odd("exact", exact=True, is_causal=is_causal),
        protocol={"input_copies": 3, "input_copies_bytes": 2**20},
    )
    assert found.statuses("prepared") == all_of("ok"), found.timings("prepared")["forward"].message
    # A window of the whole length is exact attention, and so are its gradients.
    assert (found.errors("prepared")["dq_rel_fro"].value or 0.0) < 1e-5
    assert all(timing.setup_ms is not None for timing in found.timings("prepared").values())
    assert all(timing.setup_ms is None for timing in found.timings("exact").values())
    at_point = [shape for shape in foreign_methods.prepared.prepared if shape == (1, 2, 40, 8)]
    assert len(at_point) >= 3 * len(PASSES)


def test_draws_from_the_global_generators_are_those_of_the_seed_and_leave_no_trace() -> None:
    before = torch.get_rng_state()
    found = [Measured(foreign("draws", seed=seed), foreign("projected", seed=seed)) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("draws", "projected"):
        assert all(one.statuses(name) == all_of("ok") for one in found), found[0].timings(name)["forward"].message
        errors = [one.errors(name, one.task.items[0].point.seed)["out_rel_fro"].value for one in found]
        assert errors[0] == errors[1] != errors[2]


def test_a_seed_that_a_method_takes_is_handed_over() -> None:
    target = "tests.helpers.foreign_methods.draws_by_seed"
    method = registry.find(target)
    method.check({})
    assert method.takes_seed
    (point,) = with_defaults([a_point(target=target, hyper={}, seed=5)], {target: method.defaults()})
    assert point.hyper == {"seed": 5}
    (point,) = with_defaults([a_point(target=target, hyper={"seed": 1}, seed=5)], {target: method.defaults()})
    assert point.hyper == {"seed": 1}
    found = Measured(foreign("draws_by_seed", hyper={"seed": 0}))
    values = [found.errors("draws_by_seed", seed)["out_rel_fro"].value for seed in (0, 1)]
    assert values[0] != values[1]


def test_a_method_without_a_causal_form_is_unsupported_under_a_mask_alone() -> None:
    for name, options, words in (
        ("both_ways_alone", CallOptions(), "both_ways_alone has no causal form"),
        ("windowed", CallOptions(causal=False), "windowed has no causal form"),
        ("refuses_a_mask", CallOptions(), "no causal mask yet"),
    ):
        masked = Measured(foreign(name, is_causal=True, options=options), odd("exact", exact=True, is_causal=True))
        assert reason(masked, name, "unsupported") == words
        assert Measured(foreign(name, options=options)).statuses(name) == all_of("ok")


def test_a_leak_is_refused_with_the_key_that_permits_it_and_marked_where_it_is_permitted() -> None:
    refused = Measured(foreign("leaks", is_causal=True), odd("exact", exact=True, is_causal=True))
    told = reason(refused, "leaks", "incorrect")
    assert told.startswith("not causal: outputs up to position 13 change with the keys and the values after it")
    assert "+method.leaks.allow_leak=true" in told
    found = Measured(foreign("leaks", is_causal=True, options=LEAKING), odd("exact", exact=True, is_causal=True))
    assert found.statuses("leaks") == all_of("ok")
    assert all("leaks" in timing.flags for timing in found.timings("leaks").values())
    assert not any("leaks" in timing.flags for timing in found.timings("exact").values())
    assert all(row.message.startswith("leaks: not causal") for row in found.errors("leaks").values())
    assert (found.errors("leaks")["out_rel_fro"].value or 0.0) > 1e-4
    free = Measured(foreign("leaks", options=LEAKING))
    assert not any("leaks" in timing.flags for timing in free.timings("leaks").values())


def test_a_leak_at_long_inputs_alone_is_marked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperbench.measure.worker.gate import properties

    monkeypatch.setattr(properties, "_MIN_PROBE_LEN", 128)
    shape: dict[str, Any] = {"seq_len": 256, "is_causal": True, "options": LEAKING}
    found = Measured(item("tests.helpers.gate_faults.leaks_when_long", **shape))
    assert all("leaks" in timing.flags for timing in found.timings("leaks_when_long").values())


PACKAGE = """
import torch
from torch.nn.functional import scaled_dot_product_attention


def local(q, k, v, *, is_causal, window=16):
    at = torch.arange(q.shape[2], device=q.device)
    apart = at.unsqueeze(1) - at
    mask = (apart.abs() < window) & ((apart >= 0) | (not is_causal))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
"""


def test_a_method_of_a_package_made_on_the_spot_is_swept_and_its_parameter_is_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_on_the_spot.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    found = Measured(*(item("made_on_the_spot.local", hyper={"window": w}, is_causal=True) for w in (4, 8, 40)))
    monkeypatch.delitem(sys.modules, "made_on_the_spot")
    frame = tables.build(found.records, "run")["timings"]
    assert list(frame["status"].unique()) == ["ok"]
    assert set(frame["window"]) == {4, 8, 40}
    errors = tables.build(found.records, "run")["errors"]
    by_window = errors[errors["metric"] == "out_rel_fro"].set_index("window")["value"]
    assert by_window[4] > by_window[8] > 1e-3 > 1e-5 > by_window[40]
