"""Questions with one right answer: what share of them a model gets right, beside the reference.

Written answers are sampled as the R1 distills' model card asks: temperature 0.6, top-p 0.95, no
system prompt, `<think>` opened, several seeds. Choices are compared by their likelihood, once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dsconv.errors import InputError
from dsconv.progress import Advance
from dsconv.runtime.console import say
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.verify.verdict import TaskScore

from .answers import can_compare_values
from .ask import TaskOptions, ask_all
from .questions import Question, read_task
from .statistics import Right, compare, share_right

ALL = sys.maxsize  # questions of a file


def run_task(
    file: Path,
    artifact: Loaded,
    reference: Loaded | None,
    options: TaskOptions,
    advance: Advance = lambda answers: None,
    shots_from: Path | None = None,
) -> TaskScore:
    """Ask everything of the artifact, and of the reference where one is given.

    Args:
        advance: told of every answer.
        shots_from: where worked examples come from; None is the file itself, whose examples are
            not asked.
    """
    questions, examples = questions_of(file, options, shots_from)
    if any(q.choice is None for q in questions) and not can_compare_values():
        say("answers are compared as they are written: pip install math-verify compares values")
    mine = ask_all(artifact, questions, examples, options, advance)
    alone = replace(options, draft=None)
    theirs = ask_all(reference, questions, examples, alone, advance) if reference else None
    accuracy, stderr = share_right(mine)
    other = share_right(theirs) if theirs else None
    return TaskScore(
        file.name,
        len(questions),
        max(map(len, mine)),
        accuracy,
        stderr,
        other[0] if other else None,
        other[1] if other else None,
        compare(mine, theirs) if theirs else None,
        by_subject(questions, mine),
    )


def questions_of(
    file: Path, options: TaskOptions, shots_from: Path | None = None
) -> tuple[tuple[Question, ...], list[Sequence[Question]]]:
    """-> (what is asked, the examples of each).

    Raises:
        InputError: too few questions for so many examples.
    """
    if not options.shots:
        questions = read_task(file, options.questions)
        return questions, [()] * len(questions)
    if shots_from is not None:
        questions, found = read_task(file, options.questions), read_task(shots_from, ALL)
    else:
        both = read_task(file, options.questions + options.shots)
        found = both[: options.shots]
        shown = {_asked(example) for example in found}
        questions = tuple(q for q in both[options.shots :] if _asked(q) not in shown)
    if not questions or len(found) < options.shots:
        raise _too_few(shots_from or file, len(found), options.shots)
    return questions, [_examples(q, found, options.shots, shots_from or file) for q in questions]


def _examples(
    question: Question, found: Sequence[Question], count: int, place: Path
) -> Sequence[Question]:
    """The first of the same kind, and of the same subject where there are enough of it; never the
    question itself."""
    alike = [
        example
        for example in found
        if (example.choice is None) == (question.choice is None)
        and _asked(example) != _asked(question)
    ]
    same_subject = [example for example in alike if example.subject == question.subject]
    chosen = same_subject if len(same_subject) >= count else alike
    if len(chosen) < count:
        raise _too_few(place, len(chosen), count)
    return chosen[:count]


def _asked(question: Question) -> tuple[str, tuple[str, ...]]:
    choice = question.choice
    return (question.prompt, ()) if choice is None else (choice.question, choice.texts)


def _too_few(place: Path, count: int, wanted: int) -> InputError:
    return InputError(
        f"{place}: {count} questions, {wanted} are wanted as examples",
        "use fewer with --task-shots, or a file of examples with --task-shots-from",
    )


def by_subject(questions: Sequence[Question], right: Right) -> Mapping[str, float]:
    """Accuracy of each subject; empty where there is but one."""
    subjects = sorted({question.subject for question in questions})
    if len(subjects) < 2:
        return {}
    return {
        subject: float(
            np.mean(
                [
                    np.mean(answers)
                    for question, answers in zip(questions, right, strict=True)
                    if question.subject == subject
                ]
            )
        )
        for subject in subjects
    }
