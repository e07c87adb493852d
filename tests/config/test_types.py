"""Typed configuration: what is out of its range is refused with key, value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.config import catalog
from hyperbench.config.catalog import ConfigError, check_name, nearest
from hyperbench.config.types import (
    DeviceConfig,
    ErrorConfig,
    ProtocolConfig,
    check_int,
    check_number,
    check_text,
    passes_of,
    typed,
)
from hyperbench.store.schema import MAX_INT

ERROR: dict[str, Any] = {
    "seeds": [0, 1],
    "rows": 8,
    "grad_max_seq_len": None,
    "operator_norm_max_seq_len": 64,
    "float64_max_seq_len": 64,
    "extra": [],
}


def protocol(**changes: Any) -> dict[str, Any]:
    """The standard protocol, from which the others follow, as data, with changes."""
    entries = catalog.entries
    device = {name: entries("device")["cpu"][name] for name in ("warmup_min_s", "input_copies_bytes")}
    return {**entries("protocol")["standard"], **device, **changes}


def test_the_shipped_protocol_is_good() -> None:
    assert typed(ProtocolConfig, protocol(), "protocol").name == "standard"
    assert typed(ErrorConfig, ERROR, "error").seeds == (0, 1)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, bad) for name in ("rounds", "slow_rounds", "min_samples", "max_samples", "slow_min_samples", "slices",
                                   "input_copies")
          for bad in (0, -1, 1.0, True, "2", None)),
        *((name, bad) for name in ("warmup_min_calls", "input_copies_bytes") for bad in (-1, 0.5, None)),
        *((name, bad) for name in ("fixed_time", "cuda_graph", "as_paper") for bad in (0, 1, "true", None)),
        *((name, bad) for name in ("warmup_min_s", "warmup_max_s", "skip_warmup_above_s",
                                   "keep_first_above_s", "min_spread_s")
          for bad in (-0.1, math.nan, math.inf, "1", None, True)),
        *((name, bad) for name in ("target_half_width", "timeout_s")
          for bad in (0, -1, math.nan, math.inf, 10**400, "1")),
        ("name", None), ("name", " "), ("name", 3),
        ("budget_s", 5), ("budget_s", {"forward": 0}), ("budget_s", {"forward": -1.0}), ("budget_s", {"sideways": 1.0}),
        ("max_samples", 5),
    ],
)  # fmt: skip
def test_a_protocol_refuses_what_it_cannot_do(name: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^protocol\.{name}"):
        typed(ProtocolConfig, protocol(**{name: bad}), "protocol")


def test_a_warm_up_cannot_last_longer_than_its_longest_time() -> None:
    message = r"^protocol\.warmup_max_s=1.0 must be at least protocol\.warmup_min_s=3.0"
    with pytest.raises(ConfigError, match=message):
        typed(ProtocolConfig, protocol(warmup_min_s=3.0, warmup_max_s=1.0), "protocol")
    assert typed(ProtocolConfig, protocol(warmup_min_s=1.0, warmup_max_s=1.0), "protocol").warmup_max_s == 1.0


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("seeds", []), ("seeds", None), ("seeds", "01"), ("seeds", [1, 1]), ("seeds", [-1]), ("seeds", [0.5]),
        ("seeds", [MAX_INT + 1]), ("rows", 0), ("rows", 2.5), ("grad_max_seq_len", -1), ("grad_max_seq_len", "all"),
        ("operator_norm_max_seq_len", None), ("float64_max_seq_len", -3), ("extra", "theory"), ("extra", None),
        ("extra", ["thoery"]),
    ],
)  # fmt: skip
def test_an_error_configuration_refuses_what_it_cannot_do(name: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^error\.{name}"):
        typed(ErrorConfig, {**ERROR, name: bad}, "error")


def test_further_measures_are_named_and_bias_needs_two_seeds() -> None:
    extra = ["bias", "theory"]
    assert typed(ErrorConfig, {**ERROR, "extra": extra}, "error").extra == ("bias", "theory")
    with pytest.raises(ConfigError, match=r"error\.extra=thoery is unknown; .*did you mean 'theory'"):
        typed(ErrorConfig, {**ERROR, "extra": ["thoery"]}, "error")
    with pytest.raises(ConfigError, match=r"^error\.extra has bias, which needs two seeds or more"):
        typed(ErrorConfig, {**ERROR, "seeds": [3], "extra": extra}, "error")


@pytest.mark.parametrize("name", sorted(ERROR))
def test_a_missing_key_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"error\.{name} is missing"):
        typed(ErrorConfig, {key: value for key, value in ERROR.items() if key != name}, "error")


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"error key=sedes is unknown; .*did you mean 'seeds'"):
        typed(ErrorConfig, {**ERROR, "sedes": [0]}, "error")
    with pytest.raises(ConfigError, match="must be a mapping"):
        typed(ErrorConfig, [1], "error")


@given(st.permutations(["forward", "backward", "forward_backward"]), st.integers(1, 3))
def test_passes_are_in_the_order_of_the_schema(order: list[str], count: int) -> None:
    found = passes_of(order[:count], typed(ProtocolConfig, protocol(), "protocol"))
    assert found == tuple(p for p in ("forward", "backward", "forward_backward") if p in order[:count])


@pytest.mark.parametrize("bad", [[], None, 3, {}, ["sideways"], [["forward"]], "sideways"])
def test_passes_that_are_none_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"^passes="):
        passes_of(bad, typed(ProtocolConfig, protocol(), "protocol"))


def test_a_pass_needs_a_budget() -> None:
    poor = typed(ProtocolConfig, protocol(budget_s={"forward": 1.0}), "protocol")
    assert passes_of("forward", poor) == ("forward",)
    with pytest.raises(ConfigError, match="no budget for backward"):
        passes_of(["backward"], poor)


@given(st.integers(0, 5), st.integers(-10, 10))
def test_integers_are_bounded_below(low: int, value: int) -> None:
    if value >= low:
        check_int("key", value, low=low)
    else:
        with pytest.raises(ConfigError, match=rf"key={value} must be an integer of at least {low}"):
            check_int("key", value, low=low)


def test_numbers_may_be_zero_only_where_that_means_something() -> None:
    check_number("key", 0, positive=False)
    check_number("key", 1e-300)
    with pytest.raises(ConfigError, match="key=0 must be a positive number"):
        check_number("key", 0)


@pytest.mark.parametrize("bad", ["", " ", None, 3, ["a"]])
def test_text_is_not_blank(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"^key="):
        check_text("key", bad)


@pytest.mark.parametrize("bad", [[], None, "float32", ["int8"], [3]])
def test_dtypes_are_a_list_of_known_ones(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"^device\.dtypes="):
        DeviceConfig("cpu", bad, None, {}, "")


def test_every_group_has_described_files() -> None:
    for group in catalog.GROUPS:
        entries = catalog.entries(group)
        assert list(entries) == catalog.names(group) == sorted(entries)
        assert entries
        for name, data in entries.items():
            assert len(str(data["description"])) > 10
            assert group in ("sweep", "method") or data["name"] == name


def test_a_near_name_is_suggested_and_a_far_one_is_not() -> None:
    assert nearest("flsh2", ["flash2", "hyper"]) == "; did you mean 'flash2'?"
    assert nearest("zzz", ["flash2", "hyper"]) == ""
    check_name("method", "hyper", ["flash2", "hyper"])
    with pytest.raises(ConfigError, match=r"method=zzz is unknown; allowed: flash2, hyper$"):
        check_name("method", "zzz", ["flash2", "hyper"])
