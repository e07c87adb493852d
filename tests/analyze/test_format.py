"""Numbers as a reader sees them: by example, and that they can be read back within their digits."""

from __future__ import annotations

import html

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.format import (
    PASS_LABELS,
    escape,
    is_null,
    milliseconds,
    plain,
    ratio,
    short,
    significant,
    thousands,
)
from hyperbench.store.schema import Pass
from tests.helpers.synthetic_runs import HOSTILE

numbers = st.floats(1e-9, 1e9, allow_nan=False)
_UNITS = {"µs": 1e-3, "ms": 1.0, "s": 1e3}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1.00"),
        (54.32, "54.3"),
        (9.996, "10.0"),
        (0.9996, "1.00"),
        (999.6, "1,000"),
        (1234.5, "1,234"),
        (123456.0, "123,456"),
        (0.00012345, "0.000123"),
        (0.000012345, "1.23e-05"),
        (-54.32, "-54.3"),
        (float("inf"), "inf"),
        (None, ""),
        (float("nan"), ""),
        (pd.NA, ""),
    ],
)
def test_significant_by_example(value: object, text: str) -> None:
    assert significant(value) == text


@settings(deadline=None, max_examples=200)
@given(numbers, st.integers(1, 6), st.booleans())
def test_a_number_is_read_back_within_its_digits(number: float, digits: int, negative: bool) -> None:
    value = -number if negative else number
    text = significant(value, digits)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.5 * 10.0 ** (1 - digits) * (1 + 1e-9))


@settings(deadline=None, max_examples=200)
@given(numbers, st.integers(2, 6))
def test_a_number_shows_no_more_digits_than_asked_nor_fewer(number: float, digits: int) -> None:
    mantissa = significant(number, digits).partition("e")[0].replace(",", "")
    shown = mantissa.replace(".", "").lstrip("0")
    assert len(shown) == digits or ("." not in mantissa and len(shown) > digits)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (0.0824, "82.4 µs"),
        (0.1, "0.100 ms"),
        (1.5, "1.50 ms"),
        (1234, "1,234 ms"),
        (10_000, "10.0 s"),
        (123_456, "123 s"),
        (None, ""),
    ],
)
def test_milliseconds_by_example(ms: float | None, text: str) -> None:
    assert milliseconds(ms) == text


@settings(deadline=None, max_examples=100)
@given(st.floats(1e-6, 1e8))
def test_a_duration_is_read_back_with_its_unit(ms: float) -> None:
    number, unit = milliseconds(ms).split(" ")
    assert float(number.replace(",", "")) * _UNITS[unit] == pytest.approx(ms, rel=0.0051)


def test_a_ratio_carries_its_sign_and_a_missing_one_nothing() -> None:
    assert ratio(54.32) == "54.3×"
    assert ratio(float("nan")) == ""


@pytest.mark.parametrize(
    ("length", "text"),
    [(512, "512"), (1024, "1k"), (4096, "4k"), (65_536, "65k"), (131_072, "131k"), (2**20, "1M"), (2**21, "2M")],
)
def test_lengths_as_the_field_writes_them(length: int, text: str) -> None:
    assert thousands(length) == text


def test_different_powers_of_two_look_different() -> None:
    shown = [thousands(2**e) for e in range(28)]
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize(
    ("value", "text"),
    [(256.0, "256"), (0.5, "0.5"), (True, "true"), (False, "false"), (None, ""), (pd.NA, ""), ("iid", "iid"), (7, "7")],
)
def test_plain_cells(value: object, text: str) -> None:
    assert plain(value) == text
    assert is_null(value) == (text == "")


@settings(deadline=None, max_examples=100)
@given(st.text() | st.sampled_from(HOSTILE))
def test_an_escaped_text_holds_no_markup_and_reads_as_before(text: str) -> None:
    safe = escape(text)
    assert not set(safe) & set("<>\"'$")
    assert html.unescape(safe) == html.unescape(html.escape(text))


@settings(deadline=None, max_examples=100)
@given(st.text(), st.integers(4, 40))
def test_a_shortened_text_is_one_line_and_keeps_its_beginning(text: str, limit: int) -> None:
    line = short(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1
    assert " ".join(text.split()).startswith(line.removesuffix(" …"))


def test_every_pass_has_a_label() -> None:
    assert set(PASS_LABELS) == set(Pass)
    assert PASS_LABELS["forward_backward"] == "forward+backward"
