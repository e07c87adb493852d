"""Settings for all tests; this file also puts its folder on the path, for the helpers beside it."""

from __future__ import annotations

from hypothesis import settings

# A machine that other work shares is slow at times; that is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
