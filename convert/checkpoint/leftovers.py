"""Tensors that lie in files and are no part of the weights: what a module keeps beside them.

Ignored without a word is only what follows from config.json or holds nothing that was learned.
What says something about how the model was meant to be run is ignored too, and named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Masks, positions and rotary tables, made again from config.json; counters of training.
WEIGHTLESS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)"
    r"|position_ids|causal_mask|masked_bias|attn_mask|num_batches_tracked)$"
)
# GPT-2's triangular mask, which its models call a bias; told from one by its four axes.
MASK = re.compile(r"(attn|attention)\.bias$")
MASK_RANK = 4
QUANTIZER_STATE = re.compile(
    r"(weight_fake_quant|activation_post_process|fake_quant|_quantizer)(\.|$)"
    r"|\.(fake_quant_enabled|observer_enabled|_amax|min_val|max_val)$"
)
CACHE_SCALES = re.compile(r"\.((k|v)_scale|(k|v)_proj\.output_scale|kv_cache_scaling_factor)$")
NAMED = (
    (
        QUANTIZER_STATE,
        "the state of quantizers in training: weights are read as they are, unrounded",
    ),
    (CACHE_SCALES, "scales of a quantized cache: the cache is kept as dsconv keeps it"),
)


@dataclass(frozen=True)
class Leftovers:
    """names: of all that is left aside; notes: what of it people should know."""

    names: frozenset[str]
    notes: tuple[str, ...]


def find_leftovers(unknown: Iterable[tuple[str, tuple[int, ...]]]) -> Leftovers:
    """Among the tensors that the architecture does not have, given by name and shape."""
    found = [(name, shape) for name, shape in unknown]
    names = {name for name, shape in found if WEIGHTLESS.search(name) or _is_mask(name, shape)}
    notes = []
    for pattern, words in NAMED:
        matching = sorted(name for name, _ in found if pattern.search(name) and name not in names)
        if matching:
            notes.append(f"{len(matching)} tensors such as {matching[0]!r} are left aside: {words}")
            names.update(matching)
    return Leftovers(frozenset(names), tuple(notes))


def _is_mask(name: str, shape: tuple[int, ...]) -> bool:
    is_square = len(shape) == MASK_RANK and shape[2] == shape[3]
    return is_square and MASK.search(name) is not None
