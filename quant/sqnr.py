"""How much louder a matrix's outputs are than the error that its quantization makes in them."""

from __future__ import annotations

import math

import numpy as np

from .schemes import Floats

MAX_DECIBELS = 200.0  # what stands for an error of nothing


def output_power(inputs: Floats, weights: Floats) -> float:
    """inputs: [positions, columns]; weights: [rows, columns]."""
    return _power(inputs @ weights.T)


def error_power(
    inputs: Floats,
    received: Floats,
    weights: Floats,
    others: Floats,
    offset: Floats | None = None,
) -> float:
    """Of the difference between `inputs` times `weights` and `received` times `others`.

    offset: what is added to the outputs of `others` [rows].
    """
    lost = inputs @ (weights - others).T
    if received is not inputs:
        lost += (inputs - received) @ others.T
    if offset is not None:
        lost -= offset
    return _power(lost)


def decibels(signal: float, error: float) -> float:
    """Of two powers."""
    if not error > 0 or not signal > 0:
        return MAX_DECIBELS
    return min(MAX_DECIBELS, round(10 * math.log10(signal / error), 3))


def _power(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())
