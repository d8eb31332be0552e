"""Smoothing: spread a linear map's loud input channels over its weights, the function unchanged.

For any s > 0 per input channel, x Wᵀ = (x / s) (W s)ᵀ. Int8 activations have one step per token, so
one loud channel makes the step too coarse for all others; dividing by s evens the channels out, and
the weights' columns take s over. The division itself costs nothing: whatever gives x (the gain of a
norm, the rows of a linear map) is divided by s once, in the checkpoint.

With one step per token and one per weight row, the squared rounding errors of x and W are about

    E max_j (x_j / s_j)² · Σ_j s_j² ‖W_j‖²    and    Σ_i max_j (W_ij s_j)² · Σ_j E x_j² / s_j².

Where a maximum is a fixed multiple of the root mean square, both are proportional to
Σ E x_j² / s_j² · Σ s_j² ‖W_j‖², whose minimum (Cauchy-Schwarz) is s = (rms x / rms W)^½. The
exponent α moves between that and no smoothing at all: s = (rms x / rms W)^α. SmoothQuant (Xiao et
al., arXiv:2211.10438) balances largest magnitudes instead, amax_x^α / amax_W^(1-α), which left more
error where we measured both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from .int8_rows import simulate_rows
from .schemes import Floats

# The optimum of the estimate above, or nothing. A finer grid lowers the error of every layer alone,
# but not the divergence of a whole model: SmolLM2-135M, 16 windows, 0.0095 against 0.0087.
ALPHAS = (0.0, 0.5)
# A channel quieter than this share of the median mean square counts as that loud: it may be quiet
# on the calibration text only.
QUIET = 1e-4


@dataclass(frozen=True)
class Smoothing:
    """The scales of one input [features], positive, and what they give.

    alpha: 0 means all scales are 1; error: squared error of the outputs on the samples, both sides
    rounded to int8, as a share of the outputs' squares; plain_error: the same without smoothing.
    """

    alpha: float
    scales: Floats
    error: float
    plain_error: float


def column_squares(matrices: Sequence[Floats]) -> Floats:
    """Mean square of each column over the rows of all matrices [rows_i, features] -> [features]."""
    rows = sum(len(matrix) for matrix in matrices)
    total = sum(np.einsum("ij,ij->j", m, m, dtype=np.float64) for m in matrices)
    mean: Floats = np.asarray(total / rows, np.float32)
    return mean


def migration_scales(input_squares: Floats, weight_squares: Floats, alpha: float) -> Floats:
    """Scales (rms x / rms W)^alpha [features], of geometric mean 1; alpha 0 gives ones.

    Channels whose inputs or whose weights are all zero get 1: nothing can be balanced there.

    Args:
        input_squares: mean square of each input channel [features].
        weight_squares: mean square of each weight column [features].
    """
    alive = (input_squares > 0) & (weight_squares > 0)
    scales = np.ones(len(alive), np.float32)
    if alpha == 0 or not alive.any():
        return scales
    logs = _floored_log(input_squares[alive]) - _floored_log(weight_squares[alive])
    scales[alive] = np.exp(alpha / 2 * (logs - logs.mean()))
    return scales


def search_smoothing(
    samples: Floats,
    matrices: Sequence[Floats],
    input_squares: Floats,
    weight_squares: Floats,
    alphas: Sequence[float] = ALPHAS,
) -> Smoothing:
    """The alpha of the smallest squared output error, with rounded inputs and rounded weights.

    Of equal errors the earlier alpha wins. No smoothing is always tried.

    Args:
        samples: calibration activations [tokens, features], tokens of every kind: the first token
            of a text is often by far the loudest.
        matrices: weights [rows_i, features] of all linear maps of this input.
        input_squares, weight_squares: see `migration_scales`; those of `samples` and `matrices`, or
            of more tokens, or shared between heads (`share_heads`).
    """
    outputs = [samples @ matrix.T for matrix in matrices]
    energy = sum(_energy(output) for output in outputs)
    best: Smoothing | None = None
    plain_error = 0.0
    for alpha in (0.0, *(alpha for alpha in alphas if alpha)):
        scales = migration_scales(input_squares, weight_squares, alpha)
        rounded = simulate_rows(samples / scales)
        lost = sum(
            _energy(rounded @ simulate_rows(matrix * scales).T - output)
            for matrix, output in zip(matrices, outputs, strict=True)
        )
        error = lost / energy if energy else 0.0
        if best is None:
            plain_error = error
        if best is None or error < best.error:
            best = Smoothing(alpha, scales, error, plain_error)
    if best is None:
        raise RuntimeError("no smoothing is always tried")
    return best


def fold_into_gain(gain: Floats, scales: Floats, dtype: DTypeLike) -> tuple[Floats, Floats]:
    """Divide a norm's gain by scales -> (the gain as `dtype` holds it, the scales it stands for).

    The new gain is rounded to the type it is stored in, and the scales follow it: gain = new gain *
    scales up to float32 rounding, so the function stays what it was. A channel whose gain vanishes
    or overflows in that type keeps its gain, with scale 1.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        stored = (gain / scales).astype(dtype).astype(np.float32)
        exact = gain / stored
    usable = (stored != 0) & np.isfinite(stored) & np.isfinite(exact) & (exact > 0)
    return np.where(usable, stored, gain), np.where(usable, exact, np.float32(1))


def share_heads(squares: Floats, heads: int, kv_heads: int) -> Floats:
    """Mean squares of attended channels [heads * size] -> of the values they mix [kv_heads * size].

    Consecutive query heads share a value head, and so must share its scales.
    """
    grouped = squares.reshape(kv_heads, heads // kv_heads, -1)
    mean: Floats = grouped.mean(1, dtype=np.float64).astype(np.float32).reshape(-1)
    return mean


def repeat_heads(scales: Floats, heads: int, kv_heads: int) -> Floats:
    """Inverse direction of `share_heads`: [kv_heads * size] -> [heads * size]."""
    grouped = scales.reshape(kv_heads, 1, -1)
    return np.repeat(grouped, heads // kv_heads, axis=1).reshape(-1)


def _floored_log(squares: Floats) -> Floats:
    floor = np.float32(QUIET) * np.median(squares)
    logs: Floats = np.log(np.maximum(squares, floor))
    return logs


def _energy(values: Floats) -> float:
    return float(np.einsum("ij,ij->", values, values, dtype=np.float64))
