"""Scores of LongBench's answers, as its authors' metrics.py and eval.py have them, in code of our own.

An answer is compared with each true one, and the best score counts. The oddities of that code are kept, since scores
are compared with those that it gave; each is said where it is.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hyperbench.config.longbench import Dataset, chinese_punctuation

#: Signs of lines that are no code.
_NO_CODE = ("`", "#", "//")
#: Frames that calls of others need besides the recursion of ROUGE-L, which takes one for each word.
_FRAMES = 1000


def score(dataset: Dataset, answer: str, truths: Sequence[str], classes: Sequence[str] = ()) -> float:
    """The score of an answer, 0 to 100: the best over the true answers; `classes` are all that may be named.

    Raises ValueError, one line, on a true answer that its metric cannot read, and where a package is missing.
    """
    if dataset.first_line:
        answer = answer.lstrip("\n").split("\n")[0]
    if dataset.metric == "classification":
        return 100.0 * max(classification(answer, truth, classes) for truth in truths)
    return 100.0 * max(METRICS[dataset.metric](answer, truth) for truth in truths)


def f1(answer: str, truth: str) -> float:
    """F1 of the words of two texts, without case, ASCII punctuation and English articles."""
    return _f1(_words(answer), _words(truth))


def f1_zh(answer: str, truth: str) -> float:
    """F1 of the words of two Chinese texts, as jieba finds them, without case and punctuation."""
    return _f1(_chinese_words(answer), _chinese_words(truth))


def rouge(answer: str, truth: str) -> float:
    """ROUGE-L of two texts, by the package `rouge`: F1 of the union of longest common subsequences over sentences.

    It takes sentences to end with a full stop and counts a word that comes again once; `rouge-score` does neither. A
    text without a sentence scores 0. So does, in their code alone, one too long for the stack of its recursion.
    """
    try:
        from rouge import Rouge
    except ImportError:
        raise ValueError("ROUGE-L needs the package rouge: pip install 'hyperbench[lm]'") from None
    try:
        with _recursion(len(answer.split()) + len(truth.split())):
            found = Rouge(metrics=["rouge-l"]).get_scores([answer], [truth], avg=True)
    except ValueError:
        return 0.0
    return float(found["rouge-l"]["f"])


def rouge_zh(answer: str, truth: str) -> float:
    """ROUGE-L of two Chinese texts, of the words that jieba finds."""
    return rouge(*(" ".join(_jieba().cut(text, cut_all=False)) for text in (answer, truth)))


def classification(answer: str, truth: str, classes: Sequence[str]) -> float:
    """One over the number of classes that an answer names, if the true one is among them, else 0.

    Classes whose names lie in that of the true one are not counted. Their code shortens the list while it walks along
    it, so that the class after one left out is counted anyhow.
    """
    named = [name for name in classes if name in answer]
    i = 0
    while i < len(named):
        if named[i] in truth and named[i] != truth:
            named.remove(named[i])
        i += 1
    return 1.0 / len(named) if truth in named else 0.0


def count(answer: str, truth: str) -> float:
    """The share of the true number among the numbers in an answer."""
    numbers = re.findall(r"\d+", answer)
    return sum(number == truth for number in numbers) / len(numbers) if numbers else 0.0


def retrieval(answer: str, truth: str, mark: str = "Paragraph ") -> float:
    """The share of the true paragraph's number among the numbers in an answer."""
    named = re.search(rf"{mark}(\d+)", truth)
    if named is None:
        raise ValueError(f"the true answer {truth[:40]!r} names no paragraph, such as '{mark}1'")
    return count(answer, named[1])


def retrieval_zh(answer: str, truth: str) -> float:
    """The same in Chinese."""
    return retrieval(answer, truth, "段落")


def code(answer: str, truth: str) -> float:
    """Similarity of the first line of code of an answer, in whole hundredths, as fuzzywuzzy's `ratio` has it.

    That is difflib's, which fuzzywuzzy takes unless python-Levenshtein is installed, and LongBench does not ask for it.
    """
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(sign in line for sign in _NO_CODE)), "")
    if line == truth:
        return 1.0
    if not line or not truth:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, truth).ratio()) / 100


METRICS: dict[str, Callable[[str, str], float]] = {
    "f1": f1, "f1_zh": f1_zh, "rouge": rouge, "rouge_zh": rouge_zh, "count": count, "retrieval": retrieval,
    "retrieval_zh": retrieval_zh, "code": code,
}  # fmt: skip


def _f1(found: Sequence[str], true: Sequence[str]) -> float:
    same = (Counter(found) & Counter(true)).total()
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(true)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _chinese_words(text: str) -> list[str]:
    left_out = {*string.punctuation, *chinese_punctuation()}
    words = (
        "".join("".join(char for char in word.lower() if char not in left_out).split())
        for word in _jieba().cut(text, cut_all=False)
    )
    return [word for word in words if word]


@functools.cache
def _jieba() -> Any:
    """A tokenizer of Chinese. Raises ValueError, with what to install, where the package is missing."""
    try:
        import jieba
    except ImportError:
        raise ValueError("Chinese answers need the package jieba: pip install 'hyperbench[lm]'") from None
    jieba.setLogLevel(logging.WARNING)
    found = jieba.Tokenizer()
    # Its cache would lie in a folder that everybody can write to.
    with tempfile.TemporaryDirectory() as folder:
        found.tmp_dir = folder
        found.initialize()
    return found


@contextmanager
def _recursion(depth: int) -> Iterator[None]:
    """Allow so many calls inside each other."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, depth + _FRAMES))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
