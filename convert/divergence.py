"""How far the quantized model's next token is from the original's, at the end of the pass.

Both streams of activations have arrived at the head. The vocabulary passes by in blocks of rows, so
no table of logits is held: per position only running sums of exp(logit - largest so far), and of
the same times the logits' difference, for Σ p (log p - log q).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Divergence:
    """Running sums over the vocabulary for positions of both models.

    original, quantized: inputs of the heads [positions, hidden].
    """

    def __init__(self, original: torch.Tensor, quantized: torch.Tensor) -> None:
        self._inputs = original, quantized
        count = len(original)
        self._largest = [torch.full((count,), -torch.inf) for _ in range(2)]
        self._sums = [torch.zeros(count) for _ in range(2)]
        self._weighted = torch.zeros(count)  # Σ exp(a - largest a) (a - b)

    def add(self, original: torch.Tensor, quantized: torch.Tensor) -> None:
        """Rows of the two heads for the same tokens [tokens, hidden]."""
        pairs = zip(self._inputs, (original, quantized), strict=True)
        logits = [torch.nn.functional.linear(x, rows).float() for x, rows in pairs]
        for index, part in enumerate(logits):
            largest = torch.maximum(self._largest[index], part.amax(-1))
            shrink = (self._largest[index] - largest).exp()
            powers = (part - largest[:, None]).exp()
            self._sums[index] = self._sums[index] * shrink + powers.sum(-1)
            self._largest[index] = largest
            if index == 0:
                difference = (powers * (logits[0] - logits[1])).sum(-1)
                self._weighted = self._weighted * shrink + difference

    def mean(self) -> float:
        """Nats per position: Σ p (a - b) - log Z_a + log Z_b."""
        totals = [
            largest + sums.log() for largest, sums in zip(self._largest, self._sums, strict=True)
        ]
        return float((self._weighted / self._sums[0] - totals[0] + totals[1]).double().mean())


def mean_divergence(
    original: torch.Tensor,
    quantized: torch.Tensor,
    rows: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> float:
    """Mean KL in nats per position; rows: blocks of the two heads, over the whole vocabulary."""
    divergence = Divergence(original, quantized)
    for pair in rows:
        divergence.add(*pair)
    return divergence.mean()
