"""Cases for `make test TESTS="-m slow"` alone: those much like others that every run of the tests has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*cases: Any) -> tuple[Any, ...]:
    """These cases of a parametrized test, marked as slow; a tuple holds the values of several parameters."""
    return tuple(pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=pytest.mark.slow) for c in cases)


def slow_in(cases: Iterable[Any], few: Iterable[Any]) -> list[Any]:
    """All cases, those of them in `few` marked as slow."""
    left = list(few)
    return [slow(case)[0] if case in left else case for case in cases]
