"""What it costs to quantize each matrix, estimated from one backward pass over a few windows.

With labels drawn from the model itself, the squared gradient of the log-likelihood by a matrix's
outputs estimates the Fisher information, and the mean KL that an error ΔW of the weights causes is
to second order ½ Σ_r E[g_r²] Σ_j ΔW_rj² E[x_j²]: outputs r and inputs j taken as uncorrelated, as
rounding errors are. All matrices get their estimate from the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint, module_of
from dsconv.convert.families.base import Decoder, Linear, Table
from dsconv.convert.families.inventory import Role
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchOps, load_parameter
from dsconv.convert.forward.workers import Workers
from dsconv.progress import Advance
from dsconv.quant.schemes import Scheme

# Inputs louder than this many medians count as such: the few of a massive activation would count
# for the whole matrix, while error feedback makes their weights nearly exact.
LOUDEST = 100.0
TINY = 1e-30
SAMPLED_ROWS = 256  # of a matrix: enough to know its rounding error within a few per cent


@dataclass(frozen=True)
class Sensitivity:
    """Sums over positions. gradient: g² per output; inputs: x² per input; positions: their number.

    Of the embedding, gradient is per feature and rows count by how often their token occurs.
    """

    gradient: NDArray[np.float64]
    inputs: NDArray[np.float64]
    positions: int

    def __add__(self, other: Sensitivity) -> Sensitivity:
        return Sensitivity(
            self.gradient + other.gradient,
            self.inputs + other.inputs,
            self.positions + other.positions,
        )


class _ObservingOps(TorchOps):
    """The forward, with every matrix's inputs and outputs remembered for the backward pass."""

    def __init__(self, weights: Callable[[str], torch.Tensor], tokens: torch.Tensor) -> None:
        super().__init__(weights, tokens, KeyValueCache())
        self.seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def embedding(self, table: Table) -> torch.Tensor:
        result = super().embedding(table).requires_grad_()
        self._observe(table.name, torch.ones(1, 1, 1), result)
        return result

    def linears(self, x: torch.Tensor, group: Sequence[Linear]) -> list[torch.Tensor]:
        results = super().linears(x, group)
        for linear, result in zip(group, results, strict=True):
            self._observe(linear.name, x, result)
        return results

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        result = super().head(x, linear, tied_to)
        self._observe(linear.name, x, result)
        return result

    def _observe(self, name: str, x: torch.Tensor, result: torch.Tensor) -> None:
        result.retain_grad()
        self.seen[name] = x.detach(), result


def sensitivities(
    checkpoint: Checkpoint,
    windows: Sequence[Sequence[int]],
    dtype: torch.dtype,
    workers: Workers,
    advance: Advance = lambda tokens: None,
) -> dict[str, Sensitivity]:
    """-> per module. Holds the whole model in memory, as `dtype`; one window per thread."""
    weights = {name: load_parameter(checkpoint, name, dtype) for name in checkpoint.parameters}
    parts = workers.in_order(window_sensitivity, enumerate(windows), checkpoint.decoder, weights)
    total: dict[str, Sensitivity] = {}
    for window, part in zip(windows, parts, strict=True):
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
        advance(len(window))
    return total


def window_sensitivity(
    numbered: tuple[int, Sequence[int]], decoder: Decoder, weights: Mapping[str, torch.Tensor]
) -> dict[str, Sensitivity]:
    """A unit of work: a pure function of values that can be pickled."""
    seed, window = numbered
    ops = _ObservingOps(weights.__getitem__, torch.tensor(list(window)))
    logits = decoder.forward(ops)[0]
    log_probabilities = torch.log_softmax(logits.float(), -1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        labels = torch.multinomial(log_probabilities.exp(), 1, generator=generator)
    torch.autograd.backward(-log_probabilities.gather(1, labels).sum())
    return {name: _squares(x, outputs.grad, len(window)) for name, (x, outputs) in ops.seen.items()}


def _squares(x: torch.Tensor, gradient: torch.Tensor | None, positions: int) -> Sensitivity:
    if gradient is None:
        raise RuntimeError("an output has no gradient")
    return Sensitivity(
        gradient[0].float().square().sum(0).double().numpy(),
        x[0].float().square().sum(0).double().numpy(),
        positions,
    )


@dataclass(frozen=True)
class MatrixUses:
    """A matrix, and the sensitivities of all its uses: a tied one is embedding and head."""

    checkpoint: Checkpoint
    source: str
    uses: Sequence[Sensitivity]


def estimated_kl(
    matrix: MatrixUses, schemes: Sequence[Scheme | None], workers: Workers
) -> list[float]:
    """Mean KL per token, in nats, that each scheme costs for one matrix."""
    return list(workers.in_order(scheme_loss, schemes, matrix))


def scheme_loss(scheme: Scheme | None, matrix: MatrixUses) -> float:
    """A unit of work: a pure function of values that can be pickled."""
    if scheme is None:
        return 0.0
    rows, columns = matrix.checkpoint.parameters[matrix.source].shape
    step = max(1, rows // SAMPLED_ROWS)
    chosen = range(step // 2, rows, step)
    weights = np.concatenate(
        [matrix.checkpoint.rows(matrix.source, row, row + 1) for row in chosen]
    )
    total = 0.0
    for use in matrix.uses:
        is_table = len(use.inputs) != columns
        inputs = use.inputs / use.positions
        inputs = np.minimum(inputs, LOUDEST * max(float(np.median(inputs)), TINY))
        importance = None if is_table else inputs.astype(np.float32)
        error = weights - scheme.search(weights, importance).dequantize()
        squares = error.astype(np.float64) ** 2
        if is_table:  # E over positions of Σ_f g_f² Δ_f², rows taken as equally frequent
            total += 0.5 * float((squares.mean(0) * use.gradient).sum()) / use.positions
            continue
        per_row = squares @ inputs
        gradient = use.gradient / use.positions
        # The sampled rows stand for all: the gradients of the others are known.
        total += 0.5 * float((per_row * gradient[list(chosen)]).mean()) * rows
    return total


def uses_of(
    found: Mapping[str, Sensitivity], parameter: str, role: Role, head: str, tied: bool
) -> list[Sensitivity]:
    """The sensitivities that belong to a stored matrix."""
    module = module_of(parameter)
    names = [module, head] if role is Role.EMBEDDING and tied else [module]
    return [found[name] for name in names]
