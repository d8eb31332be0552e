"""Random tokens, and how far apart what two models make of them is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def random_tokens(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocabulary, count)]


def largest_difference(a: Any, b: Any) -> float:
    """max |a - b|, refusing NaN and different shapes, which a plain maximum would let through."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert left.shape == right.shape
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()
    return float(np.abs(left - right).max())


def mean_divergence(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean KL(reference || other) over rows of logits."""
    p, q = (torch.from_numpy(np.asarray(x, np.float64)).log_softmax(-1) for x in (reference, other))
    return float((p.exp() * (p - q)).sum(-1).mean())
