"""Rotary position embedding: the frequencies, with the scalings that checkpoints ask for.

A position p turns the pair (x[i], x[i + head_dim/2]) by the angle p * frequency[i]; cosine and sine
are multiplied by `attention_factor`. Formulas: RoFormer (arXiv:2104.09864), position interpolation
(arXiv:2306.15595), YaRN (arXiv:2309.00071), Llama 3.1's smooth interpolation (its model code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Llama3Scaling:
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class YarnScaling:
    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LinearScaling:
    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """NTK-aware scaling that begins beyond `positions`: up to there nothing is scaled."""

    factor: float
    positions: int


@dataclass(frozen=True)
class Rope:
    """Base frequency and scaling of one head of `head_dim` features."""

    theta: float
    head_dim: int
    scaling: Llama3Scaling | YarnScaling | LinearScaling | DynamicScaling | None = None

    @property
    def attention_factor(self) -> float:
        return self.scaling.attention_factor if isinstance(self.scaling, YarnScaling) else 1.0

    def frequencies(self) -> NDArray[np.float32]:
        """-> [head_dim / 2], radians per position.

        Single precision, step by step as the models' authors compute it: Qwen2's huge key biases
        turn the last bit of a frequency into visible differences of the attention scores.
        """
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        powers = np.power(self.theta, exponents.astype(np.float64)).astype(np.float32)
        scaling = self.scaling
        if isinstance(scaling, LinearScaling):
            return np.float32(1) / powers / np.float32(scaling.factor)
        if isinstance(scaling, Llama3Scaling):
            return _llama3(np.float32(1) / powers, scaling)
        if isinstance(scaling, YarnScaling):
            return _yarn(powers, scaling, self.theta, self.head_dim)
        return np.float32(1) / powers


def _llama3(plain: NDArray[np.float32], scaling: Llama3Scaling) -> NDArray[np.float32]:
    """Slow waves are divided by the factor, fast ones kept, those between blended."""
    factor, low = np.float32(scaling.factor), np.float32(scaling.low_freq_factor)
    context = np.float32(scaling.original_max_position_embeddings)
    # Products with a reciprocal, as torch evaluates the published `number / tensor`.
    wavelength = np.float32(1) / plain * np.float32(2 * math.pi)
    blend = (np.float32(1) / wavelength * context - low) / np.float32(
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * plain / factor + blend * plain
    slow = wavelength > context / low
    fast = wavelength < context / np.float32(scaling.high_freq_factor)
    return np.where(slow, plain / factor, np.where(fast, plain, blended)).astype(np.float32)


def _yarn(
    powers: NDArray[np.float32], scaling: YarnScaling, theta: float, head_dim: int
) -> NDArray[np.float32]:
    """Interpolate dimensions that turn less than beta_slow times, keep those above beta_fast."""

    def dimension(turns: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as in the reference code: avoids a division by zero
    steps = np.arange(head_dim // 2, dtype=np.float32)
    kept = 1 - np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    extrapolated = np.float32(1) / powers
    interpolated = np.float32(1) / (np.float32(scaling.factor) * powers)
    frequencies: NDArray[np.float32] = interpolated * (1 - kept) + extrapolated * kept
    return frequencies
