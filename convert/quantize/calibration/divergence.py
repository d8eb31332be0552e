"""How far the quantized model's next token is from the original's, at the end of the pass.

Both streams of activations have arrived at the head. The vocabulary passes by in blocks of rows, so
no table of logits is held: per position only running sums of exp(logit - largest so far), and of
the same times the logits' difference, for Σ p (log p - log q). NumPy does the sums: torch's exp may
depend on where in memory its input lies, and the figure is part of the output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from dsconv.convert.checkpoint.tensors import TensorSource
from dsconv.convert.quantize.writer import Written

from .weights import OriginalRows


class Divergence:
    """Running sums over the vocabulary for positions of both models.

    original, quantized: inputs of the heads [positions, hidden].
    """

    def __init__(self, original: torch.Tensor, quantized: torch.Tensor) -> None:
        self._inputs = original, quantized
        count = len(original)
        self._largest = [np.full(count, -np.inf, np.float32) for _ in range(2)]
        self._sums = [np.zeros(count, np.float32) for _ in range(2)]
        self._weighted = np.zeros(count, np.float32)  # Σ exp(a - largest a) (a - b)

    def add(self, original: torch.Tensor, quantized: torch.Tensor) -> None:
        """Rows of the two heads for the same tokens [tokens, hidden]."""
        pairs = zip(self._inputs, (original, quantized), strict=True)
        logits = [torch.nn.functional.linear(x, rows).float().numpy() for x, rows in pairs]
        for index, part in enumerate(logits):
            largest = np.maximum(self._largest[index], part.max(-1))
            shrink = np.exp(self._largest[index] - largest)
            powers = np.exp(part - largest[:, None])
            self._sums[index] = self._sums[index] * shrink + powers.sum(-1)
            self._largest[index] = largest
            if index == 0:
                difference = (powers * (logits[0] - logits[1])).sum(-1)
                self._weighted = self._weighted * shrink + difference

    def mean(self) -> float:
        """Nats per position: Σ p (a - b) - log Z_a + log Z_b."""
        totals = [
            largest + np.log(sums) for largest, sums in zip(self._largest, self._sums, strict=True)
        ]
        terms = self._weighted / self._sums[0] - totals[0] + totals[1]
        return float(terms.mean(dtype=np.float64))


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


@dataclass(frozen=True)
class HeadPair:
    """The head of both models. written: the output's own files."""

    original: OriginalRows
    written: TensorSource
    dtype: torch.dtype


@torch.inference_mode()  # which counts for one thread only
def head_rows(bounds: tuple[int, int], pair: HeadPair) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [start, stop) of (the original, the quantized one), for `mean_divergence`.

    A unit of work: a pure function of values that can be pickled.
    """
    job = pair.original.job
    before = torch.from_numpy(pair.original.read(*bounds)).to(pair.dtype)
    if job.scheme is None:
        return before, before
    after = Written(pair.written, job).read(*bounds).dequantize()
    return before, torch.from_numpy(after).to(pair.dtype)
