"""Who gets how much of `--max-memory` while calibrating, and how much is rounded at a time."""

from __future__ import annotations

from dsconv.convert.families.base import DecoderConfig

ACTIVATION_SHARE = 0.25  # of the memory for calibration; the rest is for second moments
WEIGHTS_AT_A_TIME = 1 << 22  # of a matrix, rounded by one thread


def memory_for_activations(max_memory: int) -> int:
    """Bytes of activations that stay in memory; the others go to a file."""
    return int(max_memory * ACTIVATION_SHARE)


def rows_at_a_time(columns: int) -> int:
    """Of a matrix, rounded by one thread: wide ones in smaller slices; a multiple of the zero
    points' 8."""
    return max(8, min(512, WEIGHTS_AT_A_TIME // columns // 8 * 8))


def memory_for_moments(max_memory: int, config: DecoderConfig) -> int:
    """Bytes for the second moments of one input: what activations leave, and the weights that are
    held while moments are summed (gate and up, in two bytes each)."""
    weights = 2 * 2 * config.intermediate_size * config.hidden_size
    rest = max_memory - memory_for_activations(max_memory)
    return max(rest - weights, rest // 3)
