"""What hyperbench gives for the committed runs, and the points of every sweep, are what was recorded (see make.py)."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.golden.make import KERNELS, as_recorded, groups, make, recorded
from tests.helpers.slow import slow_in

RECORDED = recorded()
#: Compiled kernels, figures, every run but two that have little in common, and most sweeps.
SLOW = re.compile(
    rf"{KERNELS}$|points/(gpu_\w+|alpha|recall|heads|pairing|sampl\w+|tune\w*)$|.*/(?!(fig4|stages)/)[^/]+/(show|csv|latex|markdown)$|.*/plot$"
)
ADVICE = (
    "To see what has changed, run `python tests/golden/make.py --out DIR` on this commit and on the one before, with "
    "another DIR, and `diff -r` the two. If it was meant to change: `python tests/golden/make.py`, and commit."
)


@pytest.mark.parametrize("group", slow_in(groups(), filter(SLOW.match, groups())))
def test_the_output_is_what_was_recorded(group: str) -> None:
    kept = {name: text for name, text in RECORDED.items() if name.startswith(f"{group}/")}
    if group == KERNELS:
        _skip_under_another_triton(kept)

    now = {name: as_recorded(name, text) for name, text in make(group).items()}

    changed = sorted(name for name in kept.keys() | now.keys() if kept.get(name) != now.get(name))
    assert not changed, f"not as recorded: {', '.join(changed)}. {ADVICE}"


def test_nothing_is_recorded_of_a_group_that_is_gone() -> None:
    known = groups()

    gone = sorted(name for name in RECORDED if name.rpartition("/")[0] not in known)

    assert not gone, f"recorded, and made no more: {', '.join(gone)}. {ADVICE}"


def _skip_under_another_triton(kept: dict[str, str]) -> None:
    """Registers and spills are those of one version of the compiler."""
    try:
        here = version("triton")
    except PackageNotFoundError:
        pytest.skip("Triton is not installed")
    then = json.loads(kept[f"{KERNELS}/kernels.json"])["triton"]
    if here != then:
        pytest.skip(f"recorded with Triton {then}, here is {here}")
