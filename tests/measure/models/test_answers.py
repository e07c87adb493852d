"""Scores of LongBench's answers: values worked out by hand from its published code."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from hyperbench.config.longbench import Dataset, datasets
from hyperbench.measure.models.tasks import answers


def of(metric: str, **more: Any) -> Dataset:
    """A dataset with a metric."""
    return Dataset("group", metric, 32, "{context}", **more)


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("The cat, of course!", "a cat of course", 1.0),  # articles, punctuation and case are left out
        ("the a an", "the", 0.0),  # nothing is left
        ("", "cat", 0.0),
        ("cat", "", 0.0),
        ("theatre", "the atre", 0.0),  # an article is a word of its own
        ("don't", "dont", 1.0),
        ("black cat cat", "cat dog", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # a word that comes twice is found once
        ("un chat — noir", "un chat noir", 2 * (3 / 4) * 1 / (3 / 4 + 1)),  # the dash is no punctuation of ASCII
    ],
)
def test_f1_is_of_words_without_case_punctuation_and_articles(answer: str, truth: str, value: float) -> None:
    assert answers.f1(answer, truth) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("我来到北京清华大学。", "我 来到，北京「清华大学」", 1.0),
        ("北京大学", "清华大学", 0.0),  # words and no characters
        ("北京 天安门", "天安门", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("", "北京", 0.0),
        ("ABC。", "abc", 1.0),
    ],
)
def test_chinese_f1_is_of_the_words_that_jieba_finds(answer: str, truth: str, value: float) -> None:
    assert answers.f1_zh(answer, truth) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("the cat sat", "the cat ran", 2 / 3),
        ("cat the", "the cat", 1 / 2),  # in their order
        ("the cat. the cat", "the cat", 1.0),  # a word that comes again counts once
        ("c d. a b", "a b c d", 1.0),  # the union over sentences, in whatever order these come
        ("", "the cat", 0.0),
        ("...", "the cat", 0.0),
        ("the cat", "", 0.0),
        ("The cat", "the cat", 1 / 2),  # case counts
    ],
)
def test_rouge_l_is_that_of_the_package_rouge(answer: str, truth: str, value: float) -> None:
    assert answers.rouge(answer, truth) == pytest.approx(value, abs=1e-6)


def test_rouge_l_of_chinese_is_of_words() -> None:
    assert answers.rouge_zh("我来到北京", "我来到上海") == pytest.approx(2 / 3, abs=1e-6)


def test_rouge_l_of_a_long_sentence_is_a_score_and_no_end_of_the_stack() -> None:
    before = sys.getrecursionlimit()
    words = [f"word{i}" for i in range(before)]
    assert answers.rouge(" ".join(words), " ".join(words)) == pytest.approx(1.0, abs=1e-6)
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize(
    ("answer", "truth", "classes", "value"),
    [
        ("It is a Person", "Person", ["Person", "Place"], 1.0),
        ("Person or Place", "Person", ["Person", "Place"], 1 / 2),
        ("Other location", "Other location", ["location", "Other location"], 1.0),  # one lies in the name of the other
        ("Place", "Person", ["Person", "Place"], 0.0),
        ("", "Person", ["Person"], 0.0),
        # After one that is left out the next is not looked at: as published.
        ("ab cd abcd", "abcd", ["ab", "cd", "abcd"], 1 / 2),
        ("person", "Person", ["Person"], 0.0),
    ],
)
def test_classification_is_one_over_the_classes_that_are_named(
    answer: str, truth: str, classes: list[str], value: float
) -> None:
    assert answers.score(of("classification"), answer, [truth], classes) == pytest.approx(100 * value)


def test_numbers_are_shares_of_all_that_an_answer_names() -> None:
    assert answers.count("There are 3 of 12, so 3", "3") == pytest.approx(2 / 3)
    assert answers.count("three", "3") == 0.0
    assert answers.count("13", "3") == 0.0
    assert answers.retrieval("Paragraph 7", "Paragraph 7") == 1.0
    assert answers.retrieval("7 or 8", "Paragraph 7") == 1 / 2
    assert answers.retrieval_zh("段落12", "段落12") == 1.0
    with pytest.raises(ValueError, match="names no paragraph"):
        answers.retrieval("7", "the seventh")


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("\n\nreturn cat\nmore", "return cat", 1.0),
        ("```python\n# a comment\nreturn cat", "return cat", 1.0),
        ("return dog", "return cat", 0.7),  # seven of ten characters match, twice, of twenty
        ("# nothing", "return cat", 0.0),
        ("# nothing", "", 1.0),
        ("abxcd", "cdab", 0.44),  # one common block of two, and none after it in both: 4 of 9, in whole hundredths
    ],
)
def test_code_is_the_similarity_of_its_first_line(answer: str, truth: str, value: float) -> None:
    assert answers.code(answer, truth) == pytest.approx(value)


def test_the_best_true_answer_counts_and_scores_are_of_a_hundred() -> None:
    assert answers.score(of("f1"), "black", ["white", "it is black", "black"]) == 100.0
    assert answers.score(of("f1"), "black", ["white"]) == 0.0


def test_of_few_shot_answers_the_first_line_counts() -> None:
    told = "\n\nblack\nQuestion: and the dog?"
    assert answers.score(of("f1", first_line=True), told, ["black"]) == 100.0
    assert answers.score(of("f1"), told, ["black"]) < 50.0


def test_every_dataset_has_a_metric_and_a_prompt() -> None:
    found = datasets()
    assert len(found) == 21
    for dataset in found.values():
        assert dataset.metric in {*answers.METRICS, "classification"}
        assert dataset.prompt.count("{context}") == 1
        assert dataset.prompt.format(context="C", input="I")
    assert {name for name, dataset in found.items() if not dataset.chat} == {
        "trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p",
    }  # fmt: skip
