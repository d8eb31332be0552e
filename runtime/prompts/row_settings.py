"""The settings that a row of a file of prompts brings along, by the names of several interfaces.

What would change an answer and is not done for a row is named, and the row gets no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsconv.runtime.generate.model_settings import OFF, WHOLE
from dsconv.runtime.generate.settings import RANGES
from dsconv.runtime.text.rows import Unusable

TOKENS = ("max_completion_tokens", "max_tokens", "max_new_tokens")
STOPS = ("stop", "stop_strings", "stop_sequences")
ALIASES = {"min_tokens": "min_new_tokens"}
NAMES = {**{name: name for name in RANGES}, **ALIASES, **dict.fromkeys(TOKENS, "max_tokens")}
WHOLE_NUMBERS = (*WHOLE, "seed", "max_tokens")
# Settings that are not applied to a row, with the values that ask for nothing.
NOT_APPLIED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "grammar": ("",),
    "json_schema": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "suffix": ("",),
    "prefix": ("",),
    "prediction": (),
    "max_length": (),
    "best_of": (1,),
    "num_beams": (1,),
    "use_beam_search": (False,),
    "num_return_sequences": (1,),
    "length_penalty": (1,),
    "penalty_alpha": (0,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "echo": (False,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "reasoning_effort": (),
    "thinking_budget": (),
    "enable_thinking": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "modalities": (["text"],),
}
# Of OpenAI's interface; they do not change an answer.
WITHOUT_EFFECT = frozenset(
    (
        *("model", "messages", "prompt", "stream", "stream_options", "user", "metadata", "store"),
        *("service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        *("tool_choice", "parallel_tool_calls", "function_call", "n", "do_sample"),
    )
)


def refuse_unknown(body: Mapping[str, Any]) -> None:
    """Raises Unusable: a request to a server has a key that nothing is known of."""
    known = {*NAMES, *STOPS, *NOT_APPLIED, *WITHOUT_EFFECT}
    for key, value in body.items():
        if key not in known and value is not None:
            raise Unusable(f"{key[:60]} is not known, and would not be applied")


def settings_of(value: Mapping[str, Any]) -> tuple[dict[str, float], tuple[str, ...]]:
    """-> (settings by the names of `Sampling`, and max_tokens; texts that end the answer).

    Raises:
        Unusable: one that would change the answer and is not done here, or is no number.
    """
    for key, harmless in NOT_APPLIED.items():
        if value.get(key) is not None and value[key] not in harmless:
            raise Unusable(f"{key} is not applied by this command")
    if value.get("n") not in (None, 1):
        raise Unusable(f"n = {value['n']}: one answer per row; repeat the row with other seeds")
    found: dict[str, float] = {}
    for key, name in NAMES.items():
        given = value.get(key)
        if given is not None:
            found.setdefault(name, _number(key, name, given))
    _apply_do_sample(value.get("do_sample"), found)
    return found, tuple(text for key in STOPS for text in _texts(key, value.get(key)))


def _number(key: str, name: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise Unusable(f"{key} is no number")
    if name in WHOLE_NUMBERS and given != int(given):
        raise Unusable(f"{key} = {given} is no whole number")
    if name == "top_k" and given == OFF:
        return 0
    if name in RANGES and not RANGES[name].holds(given):
        raise Unusable(f"{key} {given} is {RANGES[name].words}")
    if name == "max_tokens" and given < 1:
        raise Unusable(f"{key} {given} is below 1")
    return int(given) if name in WHOLE_NUMBERS else given


def _apply_do_sample(draws: Any, found: dict[str, float]) -> None:
    """transformers' switch: without it a temperature is not read."""
    if draws is None:
        return
    if not isinstance(draws, bool):
        raise Unusable("do_sample is neither true nor false")
    if draws and not found.get("temperature"):
        raise Unusable("do_sample without a temperature: set one")
    if not draws:
        found["temperature"] = 0


def _texts(key: str, given: Any) -> tuple[str, ...]:
    if given is None or given == "":
        return ()
    texts = (given,) if isinstance(given, str) else tuple(given) if _is_list(given) else None
    if texts is None or not all(isinstance(text, str) and text for text in texts):
        raise Unusable(f"{key} is no list of texts")
    return texts


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
