"""Which tokens stay in before one is drawn: transformers' warpers, on probabilities.

Each takes probabilities [tokens] whose sum is 1 and gives the indices of those that stay.
Sources: top-p arXiv:1904.09751; min-p arXiv:2407.01082; typical arXiv:2202.00666; epsilon and eta
arXiv:2210.15191. One token stays at least.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Top-p sorts only the most likely tokens: first those with at least this part of the likeliest's
# probability, then more while they do not suffice.
FIRST_SHARE = 256.0
SHARE_GROWTH = 64.0
TINY = 1e-300


def top_k_tokens(logits: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """Ids, in ascending order, of the top_k largest logits; equals of the last one stay in."""
    smallest = np.partition(logits, logits.size - top_k)[logits.size - top_k]
    return np.flatnonzero(logits >= smallest)


def top_p_indices(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """The fewest most likely entries whose sum reaches top_p, most likely first."""
    least = probabilities.max() / FIRST_SHARE
    while True:
        some = np.flatnonzero(probabilities >= least)
        # Stable: of equals, those with the lower index come first.
        some = some[np.argsort(-probabilities[some], kind="stable")]
        last = int(np.searchsorted(np.cumsum(probabilities[some]), top_p, side="left"))
        if last < some.size or some.size == probabilities.size:
            return some[: last + 1]
        least = least / SHARE_GROWTH if least > TINY else 0.0


def min_p_indices(probabilities: NDArray[np.float64], min_p: float) -> NDArray[np.intp]:
    """Those at least min_p times as likely as the likeliest."""
    return np.flatnonzero(probabilities >= min_p * probabilities.max())


def typical_indices(probabilities: NDArray[np.float64], mass: float) -> NDArray[np.intp]:
    """Those whose surprise is nearest to the entropy, until their sum reaches `mass`."""
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities)
    distance = np.abs(surprise - _entropy(probabilities))
    order = np.argsort(distance, kind="stable")
    last = int(np.count_nonzero(np.cumsum(probabilities[order]) < mass))
    limit = distance[order[min(last, order.size - 1)]]
    return np.flatnonzero(distance <= limit)


def epsilon_indices(probabilities: NDArray[np.float64], epsilon: float) -> NDArray[np.intp]:
    """Those at least as likely as epsilon, and the likeliest."""
    return np.flatnonzero((probabilities >= epsilon) | (probabilities == probabilities.max()))


def eta_indices(probabilities: NDArray[np.float64], epsilon: float) -> NDArray[np.intp]:
    """As epsilon, with a limit that falls where many tokens are possible."""
    eta = min(epsilon, float(np.sqrt(epsilon) * np.exp(-_entropy(probabilities))))
    return epsilon_indices(probabilities, eta)


def _entropy(probabilities: NDArray[np.float64]) -> float:
    some = probabilities[probabilities > 0]
    return float(-(some * np.log(some)).sum())
