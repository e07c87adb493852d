"""docs/traps.md says what hyperbench says: every message that it quotes is acted out by a test of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.quoted import Quote, in_page, in_tests

PAGE = Path(__file__).parents[2] / "docs" / "traps.md"


def test_every_message_that_the_page_quotes_is_acted_out() -> None:
    quotes = in_page(PAGE.read_text(encoding="utf-8"))
    assert len(quotes) > 40
    acted_out = in_tests()
    missing = [words for words in quotes if not any(words in quote for quote in acted_out)]
    assert not missing


def test_a_row_has_a_mistake_somebody_bitten_and_an_answer() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert all(len(row.strip("| ").split(" | ")) == 3 for row in rows if not row.startswith("|---"))


@pytest.mark.parametrize(
    ("words", "text", "stands"),
    [
        ("1 of 3 rounds (oom).", "kept: 2 of 12 rounds (oom).", True),
        ("1 of 3 rounds (oom).", "kept: 2 of 12 rounds (oom)!", False),
        ("cannot write ...: No space", "cannot write some/place: No space left", True),
        ("cannot write ...: No space", "cannot read some/place: No space left", False),
        ("differ by 1e-05, at 0.5", "they differ by 0.25,\n at 7", True),
        ("all", "nothing", False),
    ],
)
def test_a_quote_is_the_words_themselves_but_for_numbers_and_gaps(words: str, text: str, stands: bool) -> None:
    assert Quote(words).stands_in(text) == stands


def test_what_is_quoted_is_read_from_the_last_column_of_tables() -> None:
    page = "a `b c d` e\n| `one two three` | x | says `four five six`, `key` and `seven eight nine` |\n"
    assert in_page(page) == ["four five six", "seven eight nine"]
