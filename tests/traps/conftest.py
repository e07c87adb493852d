"""The helpers of the tests of measuring serve here too, and so does what makes them quick."""

from __future__ import annotations

import sys
from pathlib import Path

from quick import small_and_quick as small_and_quick

sys.path.insert(0, str(Path(__file__).parent.parent / "measure"))
