"""What the report says of a run, in words."""

from __future__ import annotations

import numpy as np
import pytest

from linnaeus.evaluation.metrics import score
from linnaeus.reporting.findings import choose_verdict, explain_score, find_cautions, find_problems, top_confusions

PETS = ["cat", "dog", "emu"]


def scores_of(rows, names):
    """Return the JSON values of Scores whose confusion matrix is `rows`."""
    truth = np.repeat(np.arange(len(rows)), [sum(row) for row in rows])
    predicted = np.concatenate([np.repeat(np.arange(len(rows)), row) for row in rows])
    return score(np.eye(len(rows))[predicted], truth, names).to_dict()


def find(rows, **parts):
    """Return the problems of a test part with this confusion matrix."""
    return find_problems({"scores": {"test": scores_of(rows, PETS)}, **parts})


def test_weakest_class_is_named_with_its_rival():
    """The class of lowest recall is named with its counts and what it is taken for."""
    problem = find([[40, 8, 2], [1, 49, 0], [0, 0, 50]])[0]
    assert problem.title == "Weakest class: cat"
    assert problem.text.startswith("40 of its 50 test pictures recognised (80 %). Mostly mistaken for “dog” (8 times).")
    assert problem.command == "linnaeus train DATA"


def test_confusion_adds_to_the_weakest_class():
    """The second problem is the most frequent mistake of another class."""
    problem = find([[40, 8, 2], [1, 45, 4], [0, 0, 50]])[1]
    assert problem.title == "Confused: dog with emu"
    assert problem.command == "linnaeus evaluate RUN DATA --split train"
    assert "4 times, in 8 % of its pictures: the most frequent mistake among the other classes" in problem.text


def test_most_frequent_confusion_is_called_so():
    """A large class may make the most mistakes without being the weakest."""
    problem = find([[7, 3, 0], [20, 180, 0], [0, 0, 50]])[1]
    assert problem.title == "Confused: dog with cat"
    assert "the most frequent mistake." in problem.text


def test_perfect_scores_have_no_problem():
    """Without a mistake nothing is called weak or confused."""
    assert find([[50, 0, 0], [0, 50, 0], [0, 0, 50]]) == []


def test_guessing_comes_first():
    """A model that is no better than the most frequent class is told so before all else."""
    problem = find([[0, 90, 0], [0, 100, 0], [0, 10, 0]], settings={"epochs": 3})[0]
    assert problem.title == "No better than guessing"
    assert problem.command == "linnaeus train DATA epochs=6"


@pytest.mark.parametrize(
    ("data", "title"),
    [
        ({"identical_across_parts": 1, "bad_images": [{"path": "a"}]}, "Identical pictures across parts"),
        ({"counts": {"train": {"cat": 100, "dog": 20}}}, "Classes of very unequal size"),
        ({"counts": {"train": {"cat": 100, "dog": 0}}}, "Classes of very unequal size"),
        ({"bad_images": [{"path": "a.png", "reason": "x"}]}, "Unreadable pictures"),
    ],
)
def test_problems_of_the_data_are_among_the_three(data, title):
    """One problem of the data is shown even when the model has enough of its own."""
    problems = find([[40, 8, 2], [1, 45, 4], [0, 0, 50]], data=data)
    assert len(problems) == 3
    assert problems[2].title == title


def test_small_test_part_is_warned_of():
    """Too few pictures to tell 90 from 95 % bring a warning, with a number that would do."""
    rows = [[45, 3, 2], [3, 45, 2], [0, 5, 45]]
    cautions = find_cautions({}, choose_verdict({"scores": {"test": scores_of(rows, PETS)}}))
    assert cautions[0].startswith("150 pictures are too few to tell 90 from 95 %: the interval is 10 points wide.")
    assert cautions[0].endswith("About 610 would make it 5 points.")
    enough = scores_of([[20 * n for n in row] for row in rows], PETS)
    assert find_cautions({}, choose_verdict({"scores": {"test": enough}})) == []


def test_validation_score_is_told_apart():
    """Without a test part the validation score is shown, with a warning that it flatters."""
    verdict = choose_verdict({"scores": {"val": scores_of([[500, 3, 0], [0, 500, 2], [0, 0, 500]], PETS)}})
    assert verdict.part == "val"
    assert "expect a little less" in find_cautions({}, verdict)[0]


@pytest.mark.parametrize(
    ("accuracy", "interval", "words"),
    [
        (0.932, [0.906, 0.951], "Of 100 new pictures like these it gets about 93 right"),
        (0.997, [0.994, 0.999], "Of 1,000 new pictures like these it gets about 997 right"),
        (0.932, [0.931, 0.933], "lies between 931 and 933"),
        (1.0, [0.9, 1.0], "gets about 100 right"),
        (0.0, [0.0, 0.1], "gets about 0 right"),
    ],
)
def test_score_is_told_in_numbers_that_fit(accuracy, interval, words):
    """The score is told of 100 pictures, or of as many as it takes not to say "all"."""
    verdict = choose_verdict({"scores": {"test": {"n": 499, "accuracy": accuracy, "accuracy_interval": interval}}})
    assert words in explain_score(verdict)


def test_top_confusions_are_sorted():
    """Mistakes come most frequent first, with the size of the true class."""
    scores = scores_of([[5, 1, 0], [0, 5, 4], [2, 0, 5]], PETS)
    assert top_confusions(scores) == [("dog", "emu", 4, 9), ("emu", "cat", 2, 7), ("cat", "dog", 1, 6)]
