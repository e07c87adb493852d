"""Published claims, held against what was measured."""
