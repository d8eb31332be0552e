"""Statistics of tasks against textbook twins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dsconv.runtime.verify.tasks.statistics import compare, interval, sign_test


def binomial_test(worse: int, better: int) -> float:
    """Every split that is no likelier than the one seen, of a fair coin."""
    count = worse + better
    each = [math.comb(count, k) / 2**count for k in range(count + 1)]
    return min(1.0, sum(p for p in each if p <= each[worse] * (1 + 1e-12)))


@pytest.mark.parametrize("worse", range(0, 12))
@pytest.mark.parametrize("better", [0, 1, 5, 11, 40])
def test_mcnemar_is_the_exact_binomial(worse: int, better: int) -> None:
    assert sign_test(worse, better) == pytest.approx(binomial_test(worse, better))


def test_the_interval_is_that_of_the_normal_for_many_questions() -> None:
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 2000, p=[0.1, 0.85, 0.05])
    low, high = interval(differences)
    half = 1.96 * differences.std(ddof=1) / math.sqrt(2000)
    assert low == pytest.approx(differences.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(differences.mean() + half, abs=0.1 * half)
    assert interval(differences) == (low, high)


def test_power_is_what_it_says() -> None:
    """Of many samples with the drop that is said to be visible, four of five show it."""
    rng = np.random.default_rng(2)
    count, low, high = 400, 0.12, 0.05
    shown = 0
    for _ in range(300):
        drawn = rng.random(count)
        mine = [[bool(x > low)] for x in drawn]
        theirs = [[bool(x <= 1 - high)] for x in drawn]
        found = compare(mine, theirs)
        error = np.std([m[0] - t[0] for m, t in zip(mine, theirs, strict=True)], ddof=1)
        shown += abs(found.difference) > 1.96 * error / math.sqrt(count)
    drop = low - high
    spread = math.sqrt(low + high - drop**2)
    power = 0.5 * (1 + math.erf((drop * math.sqrt(count) / spread - 1.96) / math.sqrt(2)))
    assert shown / 300 == pytest.approx(power, abs=0.07)
    assert found.visible_drop == pytest.approx(2.8016 * spread / math.sqrt(count), rel=0.2)
    assert found.questions_for_one_point == pytest.approx((2.8016 * spread / 0.01) ** 2, rel=0.4)


def test_no_difference_is_no_proof_of_none() -> None:
    same = [[True]] * 30
    found = compare(same, same)
    assert (found.worse, found.better, found.p_value, found.interval) == (0, 0, 1.0, (0.0, 0.0))
    assert found.visible_drop == pytest.approx(2.8016 * math.sqrt(3 / 30 / 30), rel=1e-3)
    assert found.questions_for_one_point > 1000
