"""Second moments of the inputs of the head, as the original model gives them.

A tied embedding is quantized first, yet most of the harm that its errors do comes at the end, where
it is the head (eight ninths of it on SmolLM2-135M). So its inputs there are needed beforehand: one
forward pass of the original model over some of the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dsconv.convert.families.base import Decoder, Linear, Norm, Table
from dsconv.convert.forward.activation_store import ActivationStore, StoredWindows
from dsconv.convert.forward.workers import Workers

from .forward_pass import CalibratingOps
from .moments import MomentSum
from .weights import OriginalWeights

WINDOWS = 32

# The other use of a tied matrix, as embedding: its errors count alike in all features, and as much
# as this share of the mean of the head's.
EMBEDDING_SHARE = 0.1


def tied_moments(
    original: OriginalWeights,
    windows: Sequence[Sequence[int]],
    store: ActivationStore,
    workers: Workers,
) -> NDArray[np.float32]:
    """-> [hidden, hidden] for a matrix that is both embedding and head."""
    decoder = original.checkpoint.decoder
    step = max(1, len(windows) // WINDOWS)
    observer = _HeadObserver(decoder, workers)
    ops = CalibratingOps(windows[::step], observer, [original], store, workers)
    with torch.inference_mode():
        decoder.forward(ops)
    moment = observer.sum.finish().moments[0]
    mean = float(np.diagonal(moment).mean())
    moment[np.diag_indices(len(moment))] += np.float32(EMBEDDING_SHARE * mean)
    return moment


class _HeadObserver:
    """A calibrator that quantizes nothing and looks at the inputs of the head."""

    def __init__(self, decoder: Decoder, workers: Workers) -> None:
        self._head = decoder.head_linear.name
        self.sum = MomentSum([(0, decoder.config.hidden_size)], False, workers)

    def table(self, table: Table) -> None:
        return None

    def begin(self, group: Sequence[Linear]) -> MomentSum | None:
        return self.sum if group[0].name == self._head else None

    def finish(
        self,
        group: Sequence[Linear],
        moments: MomentSum,
        window: Callable[[int], torch.Tensor],
        original: Callable[[int], torch.Tensor] | None,
        source: Norm | Linear | None,
    ) -> torch.Tensor | None:
        return None

    def judge(self, original: torch.Tensor, quantized: torch.Tensor) -> None:
        return None

    def commit(self, addition: int, residual: Sequence[StoredWindows]) -> None:
        return None

    def resume(self, addition: int, store: ActivationStore) -> list[StoredWindows] | None:
        return None
