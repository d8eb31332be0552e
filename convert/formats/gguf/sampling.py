"""How a model samples, as llama.cpp reads it from a file: `general.sampling.*`, and back.

Without these keys llama.cpp samples by defaults of its own. It applies them where the user does not
say otherwise; its penalty looks at the last 64 tokens unless told to look at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError

PREFIX = "general.sampling"
WHOLE_CONTEXT = -1
NAMES = {
    "temp": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "top_k": "top_k",
    "penalty_repeat": "repetition_penalty",
}


def sampling_keys(generation: ConfigReader) -> dict[str, Any]:
    """The keys for what generation_config.json says; what is broken there is left out."""
    found: dict[str, Any] = {}

    def put(key: str, name: str, low: float, high: float) -> None:
        try:
            if generation.has(name):
                found[f"{PREFIX}.{key}"] = generation.number(name, low=low, high=high)
        except InputError:
            return

    if generation.data.get("do_sample") is True:
        put("temp", "temperature", 0.0, 100.0)
        put("top_p", "top_p", 1e-6, 1.0)
        put("min_p", "min_p", 0.0, 1.0)
        put("top_k", "top_k", -1.0, 2.0**31 - 1)
        if (top_k := found.get(f"{PREFIX}.top_k")) is not None:
            found[f"{PREFIX}.top_k"] = max(0, int(top_k))
    put("penalty_repeat", "repetition_penalty", 1e-6, 1000.0)
    if found.get(f"{PREFIX}.penalty_repeat", 1.0) == 1.0:
        found.pop(f"{PREFIX}.penalty_repeat", None)
    else:
        found[f"{PREFIX}.penalty_last_n"] = WHOLE_CONTEXT
    return found


def sampling_of(metadata: ConfigReader) -> dict[str, Any]:
    """Keys of generation_config.json for what a file says; empty where it says nothing."""
    found = {
        name: _short(metadata.data[f"{PREFIX}.{key}"])
        for key, name in NAMES.items()
        if metadata.has(f"{PREFIX}.{key}")
    }
    if "temperature" in found:
        found["do_sample"] = True
    return found


def _short(value: Any) -> Any:
    """The shortest decimal of a number that was stored as float32."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
