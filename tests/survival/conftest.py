"""Puts the helpers of the tests of measuring on the path, here and in the processes that these tests start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hyperbench

HERE = Path(__file__).parent
PATHS = (HERE, HERE.parent, HERE.parent / "measure", Path(hyperbench.__file__).parents[1])
sys.path[:0] = [str(path) for path in PATHS if str(path) not in sys.path]


@pytest.fixture(autouse=True, scope="package")
def importable() -> Iterator[None]:
    """Lets processes import what these tests import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*map(str, PATHS), os.environ.get("PYTHONPATH", "")]))
        yield
