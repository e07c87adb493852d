"""What makes these tests quick."""

from quick import small_and_quick as small_and_quick
