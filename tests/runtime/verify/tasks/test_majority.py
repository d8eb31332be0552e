"""The answer of most samples, and the mean over subjects, against slow textbook twins."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scripted_session import scripted

from dsconv.runtime.report.terminal import _task
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.verify.tasks.ask import Answered, TaskOptions
from dsconv.runtime.verify.tasks.majority import majority_of
from dsconv.runtime.verify.tasks.questions import Question
from dsconv.runtime.verify.tasks.run import run_task, score_of
from dsconv.runtime.verify.tasks.statistics import macro_average


def most_common(answers: tuple[str | None, ...]) -> str | None:
    """Of plain words: the highest count, of those the earliest."""
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return None
    return min(counts, key=lambda answer: (-counts[answer], answers.index(answer)))


def test_majority_is_the_most_common() -> None:
    for length in range(6):
        for answers in itertools.product(("1", "2", "3", None), repeat=length):
            assert majority_of(answers) == most_common(answers), answers


@pytest.mark.parametrize(
    ("answers", "most"),
    [
        (["0.5", "7", r"\frac{1}{2}"], "0.5"),  # one value, written twice
        (["7", r"\frac{1}{2}", "0.5"], r"\frac{1}{2}"),
        (["Yes", "no", "yes"], "Yes"),
        (["(B)", "C", "B"], "(B)"),
        ([None, None, "3"], "3"),  # what was cut has no vote
        ([None, None], None),
        (["1", "2"], "1"),
        (["2", "1"], "2"),
    ],
)
def test_answers_are_the_same_as_in_grading(answers: list[str | None], most: str | None) -> None:
    assert majority_of(answers) == most


def answered(*right: bool, majority: bool = False, cut: int | None = 0) -> Answered:
    return Answered(right, majority, cut)


def drawn(rng: np.random.Generator, count: int) -> tuple[list[str], list[list[bool]]]:
    subjects = [str(name) for name in rng.choice(["law", "art", "logic"], count, p=[0.6, 0.3, 0.1])]
    chance = {"law": 0.9, "art": 0.5, "logic": 0.2}
    return subjects, [list(rng.random(4) < chance[name]) for name in subjects]


@pytest.mark.parametrize("seed", range(5))
def test_macro_average_is_the_mean_of_means(seed: int) -> None:
    subjects, right = drawn(np.random.default_rng(seed), 120)
    means, variances = [], []
    for name in set(subjects):
        shares = [sum(r) / len(r) for s, r in zip(subjects, right, strict=True) if s == name]
        mean = sum(shares) / len(shares)
        means.append(mean)
        squares = sum((share - mean) ** 2 for share in shares)
        variances.append(squares / (len(shares) - 1) / len(shares))
    found = macro_average(right, subjects)
    assert found is not None
    assert found[0] == pytest.approx(sum(means) / 3)
    assert found[1] == pytest.approx(math.sqrt(sum(variances)) / 3)


def test_its_error_is_the_spread_of_many_draws() -> None:
    """Samples of one question agree more than those of others: questions are what is drawn."""
    rng = np.random.default_rng(3)
    subjects = ["law"] * 60 + ["art"] * 12
    means, errors = [], []
    for _ in range(600):
        chances = np.concatenate([rng.beta(0.8, 0.2, 60), rng.beta(0.3, 0.3, 12)])
        found = macro_average([list(rng.random(4) < chance) for chance in chances], subjects)
        assert found is not None
        means.append(found[0])
        errors.append(found[1])
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_one_subject_has_no_mean_of_subjects() -> None:
    assert macro_average([[True], [False]], ["law", "law"]) is None
    found = macro_average([[True], [False], [True]], ["law", "art", "art"])
    assert found == pytest.approx((0.75, math.sqrt(0.5**2 + 0.5**2) / 2))  # one alone: 0.5


def test_a_score_holds_all_of_it() -> None:
    questions = [Question("", "1", subject=name) for name in ("law", "law", "law", "art")]
    mine = [
        answered(True, True, False, majority=True),
        answered(True, False, False, cut=2),
        answered(False, False, True),
        answered(False, False, False, cut=1),
    ]
    theirs = [answered(True, True, True, majority=True)] * 4
    score = score_of("t", questions, mine, theirs)
    assert score.artifact_accuracy == pytest.approx(4 / 12)
    assert score.majority is not None
    assert score.macro is not None
    assert (score.majority.artifact_accuracy, score.majority.reference_accuracy) == (0.25, 1)
    assert score.majority.artifact_stderr == pytest.approx(np.std([1, 0, 0, 0], ddof=1) / 2)
    assert score.macro.artifact_accuracy == pytest.approx((4 / 9 + 0) / 2)
    assert score.subjects == pytest.approx({"law": 4 / 9, "art": 0})
    assert score.reference_subjects == {"law": 1, "art": 1}
    assert (score.artifact_cut, score.reference_cut) == (0.25, 0)
    chosen = score_of("t", questions[:3], [answered(True, majority=True, cut=None)] * 3, None)
    assert (chosen.majority, chosen.macro, chosen.artifact_cut) == (None, None, None)
    assert [line.strip().split(":")[0] for line in _task(score)][:3] == [
        "t",
        "mean of 2 subjects",
        "answer of most of 3 samples",
    ]


def test_of_a_model(tmp_path: Path, loaded: Loaded) -> None:
    file = tmp_path / "t.jsonl"
    rows = [{"problem": "a", "answer": "4", "subject": name} for name in ("Algebra", "Geometry")]
    file.write_text("\n".join(map(json.dumps, rows)))
    options = TaskOptions(questions=5, seeds=3, max_tokens=14, temperature=0.0)
    texts = ["</think>5", "</think>4", "</think>4.0", "4 and on and on", "</think>4", "</think>6"]
    score = run_task(file, scripted(loaded, texts)[1], None, options)
    assert score.artifact_accuracy == 0.5
    assert score.majority is not None
    assert score.macro is not None
    assert score.majority.artifact_accuracy == 1.0  # 4 twice; of 4 and 6 the first
    assert score.majority.reference_accuracy is None
    assert score.macro.artifact_accuracy == 0.5
    assert score.artifact_cut == pytest.approx(1 / 6)
    assert score.reference_cut is None
