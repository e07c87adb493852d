"""The check of sizes on made-up files: each breach is told with its place, and what is within the limits is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_sizes import offenders


def found(root: Path, text: str, name: str = "hyperbench/some.py") -> list[str]:
    """The breaches of one made-up module."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return list(offenders(root))


def test_a_long_module_is_told_and_one_of_300_lines_is_not(tmp_path: Path) -> None:
    assert found(tmp_path, "x = 1\n" * 300) == []
    assert found(tmp_path, "x = 1\n" * 301) == ["hyperbench/some.py:301: 301 lines, at most 300"]


def test_a_crowded_folder_is_told_and_its_init_does_not_count(tmp_path: Path) -> None:
    for number in range(11):
        found(tmp_path, "", f"tools/part_{number}.py")
    found(tmp_path, "", "tools/__init__.py")
    assert found(tmp_path, "", "tools/part_11.py") == []
    assert found(tmp_path, "", "tools/part_12.py") == ["tools:1: 13 modules in a folder, at most 12"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def f(a, b, c, d, e, f, g, h): ...", False),
        ("def f(a, b, c, d, e, f, g, h, i): ...", True),
        ("def f(a, b, c, d, /, e, f, *rest, g, h, i): ...", True),
        ("class C:\n    def f(self, a, b, c, d, e, f, g, h): ...", False),
        ("class C:\n    def f(self, a, b, c, d, e, f, g, h, i): ...", True),
        ("class C(torch.autograd.Function):\n    def forward(ctx, a, b, c, d, e, f, g, h, i): ...", False),
        ("@torch.library.custom_op('a::b', mutates_args=())\ndef f(a, b, c, d, e, f, g, h, i): ...", False),
    ],
)
def test_parameters_are_counted_but_for_signatures_that_pytorch_dictates(tmp_path: Path, text: str, told: bool) -> None:
    assert bool(found(tmp_path, text)) is told


def test_kernels_may_take_many_parameters(tmp_path: Path) -> None:
    text = "def f(a, b, c, d, e, f, g, h, i): ..."
    assert found(tmp_path, text, "hyperattn_core/triton_backend/kernels/some.py") == []


@pytest.mark.parametrize("word", ["What", "Whether", "Which", "Where", "When", "How", "Who", "Why"])
def test_a_docstring_that_begins_with_a_question_word_is_told(tmp_path: Path, word: str) -> None:
    text = f'"""A module."""\n\n\nclass C:\n    def f(self):\n        """{word} it does."""\n'
    (line,) = found(tmp_path, text)
    assert line.startswith(f"hyperbench/some.py:6: a docstring begins with '{word}'")
    assert found(tmp_path, text.replace(word, "All that")) == []
