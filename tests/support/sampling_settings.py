"""Settings of generation_config.json that change logits, one of each kind."""

from __future__ import annotations

from typing import Any

LOOKING_BACK: list[dict[str, Any]] = [
    {"repetition_penalty": 1.1},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"bad_words_ids": [[5], [7], [1, 2], [2, 3, 4]]},
    {"sequence_bias": [[[5], 2.5], [[1, 2], -3.0], [[3], float(-4)]]},
    {"min_length": 9},
    {"min_length": 4},
    {"min_new_tokens": 3},
    {"min_length": 4, "min_new_tokens": 5},
    {"suppress_tokens": [0, 11, 250]},
    {"begin_suppress_tokens": [7, 12]},
    {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[1, 2], [17]],
        "sequence_bias": [[[4], 6.0]],
        "suppress_tokens": [99],
        "min_new_tokens": 2,
    },
]


def hashable(value: Any) -> Any:
    return tuple(hashable(item) for item in value) if isinstance(value, list) else value
