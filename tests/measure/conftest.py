"""What makes these tests quick."""

from tests.helpers.quick import small_and_quick as small_and_quick
