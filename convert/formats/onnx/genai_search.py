"""How a model samples, in the words of onnxruntime-genai's `search` block.

Samplers of genai read less than generation_config.json may hold, and refuse values that switch a
filter off in other software. What cannot be said is noted; it never stops an export.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError

FILE = "genai_config.json"
DEFAULT_TOP_K = 50  # of transformers and genai, where a model that samples does not say
# What `run` applies and genai has no word for, with the values that ask for nothing.
WITHOUT_WORD: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_new_tokens": (0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ([],),
    "stop_strings": ([],),
}
Value = TypeVar("Value")


def search_settings(generation: ConfigReader) -> tuple[dict[str, Any], tuple[str, ...]]:
    """-> (settings, notes for people)."""
    notes: list[str] = []

    def value_of(name: str, read: Callable[[], Value], default: Value) -> Value:
        try:
            return read()
        except InputError as error:
            notes.append(f"{error.message}: {FILE} has {default!r}")
            return default

    def number(name: str, default: float, low: float, high: float = 1e12) -> float:
        return value_of(name, lambda: generation.number(name, default, low, high), default)

    def whole(name: str, default: int, low: int = 0) -> int:
        return value_of(name, lambda: int(generation.number(name, default, low)), default)

    temperature = number("temperature", 1.0, 0.0, 100.0)
    sampled = value_of("do_sample", lambda: generation.boolean("do_sample", False), False)
    search: dict[str, Any] = {
        "do_sample": sampled and temperature > 0,
        "temperature": temperature or 1.0,
        "top_p": number("top_p", 1.0, 1e-6, 1.0),
        "top_k": max(0, whole("top_k", DEFAULT_TOP_K if sampled else 1, low=-1)),
        "repetition_penalty": number("repetition_penalty", 1.0, 1e-6),
        "no_repeat_ngram_size": whole("no_repeat_ngram_size", 0),
        "min_length": whole("min_length", 0),
    }
    for name, neutral in WITHOUT_WORD.items():
        value = generation.data.get(name)
        if value is not None and value not in neutral:
            notes.append(f"{generation.where}: {name} = {str(value)[:60]}: {FILE} cannot say it")
    return search, tuple(notes)
