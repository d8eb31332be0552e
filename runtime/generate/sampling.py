"""Choose the next token as transformers does: what the text so far asks for, then temperature,
top-k, top-p, min-p, typical, epsilon and eta, then a draw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError

from . import filters
from .past import FORBIDDEN, Past
from .settings import Sampling as Sampling


def _check_finite(logits: NDArray[np.float32]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(logits.sum()):  # one that is not would show; else each is looked at
            return
    wrong = logits.size - int(np.count_nonzero(np.isfinite(logits)))
    if wrong:
        what = "NaN" if np.isnan(logits).any() else "infinity"
        raise InputError(
            f"the model produced {what}: {wrong} of {logits.size} logits are not finite",
            "the weights are damaged or overflow in fp16; verify the artifact, or run in fp32",
        )


def filtered(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Tokens that may be chosen at a temperature above 0, and their probabilities (sum 1)."""
    tokens: NDArray[np.intp] | None = None  # all of them
    if logits.min() == -np.inf:  # forbidden by the text so far
        tokens = np.flatnonzero(logits > -np.inf)
        logits = logits[tokens]
    if 0 < sampling.top_k < logits.size:
        best = filters.top_k_tokens(logits, sampling.top_k)
        tokens, logits = best if tokens is None else tokens[best], logits[best]
    # The largest comes off before the division: no temperature can overflow it.
    probabilities = np.subtract(logits, logits.max(), dtype=np.float64)
    probabilities /= sampling.temperature
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum()
    for keep in _filters(sampling):
        best = keep(probabilities)
        tokens, probabilities = best if tokens is None else tokens[best], probabilities[best]
        probabilities /= probabilities.sum()
    return np.arange(logits.size) if tokens is None else tokens, probabilities


def _filters(
    sampling: Sampling,
) -> list[Callable[[NDArray[np.float64]], NDArray[np.intp]]]:
    """Those that are switched on, in the order of transformers."""
    found: list[Callable[[NDArray[np.float64]], NDArray[np.intp]]] = []
    if sampling.top_p < 1:
        found.append(lambda p: filters.top_p_indices(p, sampling.top_p))
    if sampling.min_p > 0:
        found.append(lambda p: filters.min_p_indices(p, sampling.min_p))
    if sampling.typical_p < 1:
        found.append(lambda p: filters.typical_indices(p, sampling.typical_p))
    if 0 < sampling.epsilon_cutoff < 1:
        found.append(lambda p: filters.epsilon_indices(p, sampling.epsilon_cutoff))
    if 0 < sampling.eta_cutoff < 1:
        found.append(lambda p: filters.eta_indices(p, sampling.eta_cutoff))
    return found


class Sampler:
    """Draws tokens; the same seed, text and logits give the same tokens.

    before: what the session has seen already, in front of the prompt.
    """

    def __init__(self, sampling: Sampling, before: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._before, self._past = tuple(before), Past(sampling)
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def begin(self, prompt: Sequence[int], end_ids: Collection[int]) -> None:
        """Told of the prompt before the first token is chosen."""
        if self.sampling.looks_back:
            self._past = Past(self.sampling, (*self._before, *prompt), end_ids)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token, given logits [vocabulary].

        Raises:
            InputError: the logits hold NaN or infinity, or the settings forbid every token.
        """
        _check_finite(logits)
        scores = self._past.adjusted(logits)
        token = self._choose(scores)
        if scores[token] == FORBIDDEN:
            raise InputError(
                "the sampling settings forbid every token",
                "switch some off, as with --repetition-penalty 1 --no-repeat-ngram-size 0",
            )
        self._past.append(token)
        return token

    def _choose(self, scores: NDArray[np.float32]) -> int:
        if self.sampling.temperature == 0 or scores.max() == FORBIDDEN:
            return int(np.argmax(scores))
        tokens, probabilities = filtered(scores, self.sampling)
        cumulative = np.cumsum(probabilities)
        # Scaled by the last sum, which rounding leaves near 1 but not at it.
        drawn = self._random.random() * cumulative[-1]
        index = int(np.searchsorted(cumulative, drawn, side="right"))
        return int(tokens[min(index, tokens.size - 1)])
