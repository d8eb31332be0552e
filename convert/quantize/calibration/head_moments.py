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

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.base import Linear, Norm, Table
from dsconv.convert.forward.activation_store import ActivationStore, StoredWindows
from dsconv.convert.forward.torch_ops import load_parameter
from dsconv.convert.forward.workers import Workers

from .forward_pass import CalibratingOps
from .moments import MomentSum

WINDOWS = 32

# The other use of a tied matrix, as embedding: its errors count alike in all features, and as much
# as this share of the mean of the head's.
EMBEDDING_SHARE = 0.1


def tied_moments(
    checkpoint: Checkpoint,
    windows: Sequence[Sequence[int]],
    dtype: torch.dtype,
    store: ActivationStore,
    workers: Workers,
) -> NDArray[np.float32]:
    """-> [hidden, hidden] for a matrix that is both embedding and head."""
    step = max(1, len(windows) // WINDOWS)
    observer = _HeadObserver(checkpoint, dtype, workers)
    ops = CalibratingOps(windows[::step], observer, store, workers, with_original=False)
    with torch.inference_mode():
        checkpoint.decoder.forward(ops)
    moment = observer.sum.finish().moments[0]
    mean = float(np.diagonal(moment).mean())
    moment[np.diag_indices(len(moment))] += np.float32(EMBEDDING_SHARE * mean)
    return moment


class _HeadObserver:
    """A calibrator that quantizes nothing and looks at the inputs of the head."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, workers: Workers) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        hidden = checkpoint.decoder.config.hidden_size
        self.sum = MomentSum([(0, hidden)], False, workers)

    def original(self, name: str) -> torch.Tensor:
        return load_parameter(self._checkpoint, name, self._dtype)

    quantized = original

    def table(self, table: Table) -> None:
        return None

    def rows(self, table: Table, tokens: torch.Tensor, original: bool) -> torch.Tensor:
        name = f"{table.name}.weight"
        rows = [self._checkpoint.rows(name, int(token), int(token) + 1) for token in tokens]
        return torch.from_numpy(np.concatenate(rows)).to(self._dtype)

    def begin(self, group: Sequence[Linear]) -> MomentSum | None:
        is_head = group[0].name == self._checkpoint.decoder.head_linear.name
        return self.sum if is_head else None

    def rounds_inputs(self, name: str) -> bool:
        return False

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
