"""Settings for all tests; this file also puts its folder on the path, for the helpers beside it."""

from __future__ import annotations

import os

from hypothesis import settings

# Kernels run in Triton's interpreter, on the CPU; this must be known before they are first imported. The tests of
# tests/gpu, which need the compiled ones, are run with TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A machine that other work shares is slow at times; that is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
