"""Words that docs/traps.md quotes: a test that acts a mistake out holds them against what was really said."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parents[1] / "traps"
#: What differs from one occasion to another: numbers, and what stands for words left out.
_FREE = re.compile(r"(?P<gap>\.\.\.)|[+-]?\d[\d,.]*(?:e[+-]?\d+)?(?<![.,])")
#: Words of this number or more, between backticks in the last column of a table, are what hyperbench says.
_MESSAGE_WORDS = 3


class Quote(str):
    """Words as docs/traps.md has them; numbers may be others, and "..." stands for words left out."""

    def stands_in(self, text: str) -> bool:
        """Whether these words were said; line breaks do not count."""
        return re.search(pattern(self), " ".join(text.split())) is not None


def pattern(words: str) -> str:
    """The regular expression of a quote."""
    parts, at = [], 0
    for match in _FREE.finditer(words):
        parts.append(re.escape(words[at : match.start()]))
        parts.append(".*" if match["gap"] else r"[+-]?\d[\d,.]*(?:e[+-]?\d+)?")
        at = match.end()
    return "".join([*parts, re.escape(words[at:])])


def in_page(page: str) -> list[str]:
    """Every message that the last column of a table of the page quotes."""
    cells = [line.rstrip(" |").rpartition(" | ")[2] for line in page.splitlines() if line.startswith("|")]
    quotes = [words for cell in cells for words in re.findall(r"`([^`]+)`", cell)]
    return [words for words in quotes if len(words.split()) >= _MESSAGE_WORDS]


def in_tests() -> set[str]:
    """The words of every Quote in the tests of this folder."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in HERE.glob("test_*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        str(call.args[0].value)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "Quote" and isinstance(call.args[0], ast.Constant)
    }
