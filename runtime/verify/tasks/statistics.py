"""What the answers of two models to the same questions tell: shares, differences, and how sure.

Questions are what is drawn at random; answers to one question go together. The test is McNemar's
with the exact binomial (for several answers per question the sign test on their shares), the
interval a paired bootstrap over questions, the power that of a paired z-test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
Z_TEST, Z_POWER = 1.959964, 0.841621  # 5 % two-sided, 80 %
POINT = 0.01

Right = Sequence[Sequence[bool]]  # [questions][answers]


@dataclass(frozen=True)
class Shares:
    """A share of right answers by another count, of both models, with its standard error."""

    artifact_accuracy: float
    artifact_stderr: float
    reference_accuracy: float | None
    reference_stderr: float | None


@dataclass(frozen=True)
class Paired:
    """difference: accuracy of the artifact minus that of the reference, with its 95 % interval.

    worse, better: questions on which the artifact does worse, better. p_value: of no difference.
    visible_drop: the smallest drop that so many questions show four times of five.
    questions_for_one_point: how many would show a drop of one point as often.
    """

    difference: float
    interval: tuple[float, float]
    worse: int
    better: int
    p_value: float
    visible_drop: float
    questions_for_one_point: int


def share_right(right: Right) -> tuple[float, float]:
    """-> (share, its standard error).

    The answers to one question go together, so questions are what is drawn at random: the error
    is that of the mean over questions of each one's share. One question alone says nothing: 0.5.
    """
    shares = _shares(right)
    count = len(shares)
    error = float(shares.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.5
    return float(shares.mean()), error


def macro_average(right: Right, subjects: Sequence[str]) -> tuple[float, float] | None:
    """-> (mean over subjects of each one's share, its standard error); None for one subject.

    Each subject counts alike, however many questions it has. Its questions are drawn from itself,
    so the variances of the subjects' means add up. One question alone has the largest there is.
    """
    names = sorted(set(subjects))
    if len(names) < 2:
        return None
    parts = [
        share_right([each for each, name in zip(right, subjects, strict=True) if name == subject])
        for subject in names
    ]
    mean = math.fsum(share for share, _ in parts) / len(names)
    return mean, math.sqrt(math.fsum(error**2 for _, error in parts)) / len(names)


def compare(mine: Right, theirs: Right) -> Paired:
    """Both answered the same questions (at least one)."""
    differences = _shares(mine) - _shares(theirs)
    count = len(differences)
    worse, better = int((differences < 0).sum()), int((differences > 0).sum())
    variance = float(differences.var(ddof=1)) if count > 1 else 1.0
    if worse + better == 0:  # three in n: the most that none in n leaves likely
        variance = min(1.0, 3 / count)
    factor = Z_TEST + Z_POWER
    return Paired(
        float(differences.mean()),
        interval(differences),
        worse,
        better,
        sign_test(worse, better),
        factor * math.sqrt(variance / count),
        math.ceil(factor**2 * variance / POINT**2),
    )


def sign_test(worse: int, better: int) -> float:
    """Two-sided, exact: P of a split at least as uneven, of a fair coin."""
    count = worse + better
    if count == 0:
        return 1.0
    tail = sum(math.comb(count, k) for k in range(min(worse, better) + 1))
    return float(min(1.0, 2 * tail / 2**count))


def interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the means of resampled questions; the same for the same differences."""
    random = np.random.Generator(np.random.PCG64(0))
    count = len(differences)
    means = np.array(
        [differences[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _shares(right: Right) -> NDArray[np.float64]:
    return np.array([np.mean(answers) for answers in right], np.float64)
