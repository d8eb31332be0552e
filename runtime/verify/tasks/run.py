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
from .ask import Answered, TaskOptions, ask_all
from .questions import Question, read_task
from .statistics import Right, Shares, compare, macro_average, share_right

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
    return score_of(file.name, questions, mine, theirs)


def score_of(
    name: str,
    questions: Sequence[Question],
    mine: Sequence[Answered],
    theirs: Sequence[Answered] | None,
) -> TaskScore:
    right, other = (None if all_ is None else [a.right for a in all_] for all_ in (mine, theirs))
    assert right is not None
    subjects = [question.subject for question in questions]
    pass_at_1 = _shares(share_right(right), share_right(other) if other else None)
    return TaskScore(
        name,
        len(questions),
        max(map(len, right)),
        pass_at_1.artifact_accuracy,
        pass_at_1.artifact_stderr,
        pass_at_1.reference_accuracy,
        pass_at_1.reference_stderr,
        compare(right, other) if other else None,
        by_subject(subjects, right),
        by_subject(subjects, other) if other else {},
        _macro(subjects, right, other),
        _majority(mine, theirs),
        _cut(mine),
        _cut(theirs or ()),
    )


def _shares(mine: tuple[float, float], theirs: tuple[float, float] | None) -> Shares:
    return Shares(*mine, *(theirs or (None, None)))


def _macro(subjects: Sequence[str], right: Right, other: Right | None) -> Shares | None:
    mine = macro_average(right, subjects)
    return mine and _shares(mine, macro_average(other, subjects) if other else None)


def _majority(mine: Sequence[Answered], theirs: Sequence[Answered] | None) -> Shares | None:
    """None where no question has several answers."""
    if max(len(each.right) for each in mine) < 2:
        return None
    own, other = (
        None if all_ is None else share_right([[each.majority] for each in all_])
        for all_ in (mine, theirs)
    )
    return own and _shares(own, other)


def _cut(answered: Sequence[Answered]) -> float | None:
    """None where nothing was written."""
    written = [len(each.right) for each in answered if each.cut is not None]
    return sum(each.cut or 0 for each in answered) / sum(written) if written else None


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
    """The same for the same question, whatever its spaces, case and order of choices."""
    choice = question.choice
    text, texts = (question.prompt, ()) if choice is None else (choice.question, choice.texts)
    return _folded(text), tuple(sorted(map(_folded, texts)))


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _too_few(place: Path, count: int, wanted: int) -> InputError:
    return InputError(
        f"{place}: {count} questions, {wanted} are wanted as examples",
        "use fewer with --task-shots, or a file of examples with --task-shots-from",
    )


def by_subject(subjects: Sequence[str], right: Right) -> Mapping[str, float]:
    """Accuracy of each subject; empty where there is but one."""
    shares = [float(np.mean(answers)) for answers in right]
    names = sorted(set(subjects))
    if len(names) < 2:
        return {}
    pairs = list(zip(subjects, shares, strict=True))
    return {name: float(np.mean([s for subject, s in pairs if subject == name])) for name in names}
