"""Turns of a conversation in the ways that data sets write them, as chat templates want them.

OpenAI's `role` and `content` (a string or parts), ShareGPT's `from` and `value`, strings by turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .rows import Unusable

Turn = dict[str, Any]
ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
CALLS = ("function_call", "tool_call")  # turns of ShareGPT that are a call as JSON
SPEAKERS = ("role", "from", "speaker", "author")
WORDS = ("content", "value", "text", "parts", "message")
KEPT = ("tool_calls", "tool_call_id", "name")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def turns_of(value: Sequence[Any], name: str) -> tuple[Turn, ...]:
    """Raises Unusable."""
    if not value:
        raise Unusable(f"{name} is empty", blank=True)
    if all(isinstance(turn, str) for turn in value):
        roles = ("user", "assistant")
        value = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(value)]
    turns = tuple(_turn(turn, f"{name}[{index}]") for index, turn in enumerate(value))
    if not any(turn["content"] or turn.get("tool_calls") for turn in turns):
        raise Unusable(f"{name} has no words", blank=True)
    return turns


def _turn(value: Any, where: str) -> Turn:
    if not isinstance(value, dict):
        raise Unusable(f"{where} is no turn of a conversation", form=True)
    speaker = next((value[key] for key in SPEAKERS if isinstance(value.get(key), str)), None)
    words = next((key for key in WORDS if key in value), None)
    if speaker is None or (words is None and not value.get("tool_calls")):
        keys = ", ".join(map(repr, value)) or "none"
        raise Unusable(f"{where} has the keys {keys}, not a role and a content", form=True)
    role = ROLES.get(speaker.lower(), speaker.lower())
    content = None if words is None else content_of(value[words], where)
    if role in CALLS:
        return _call(content, where)
    turn: Turn = {"role": role, "content": content}
    if content is None and not value.get("tool_calls"):
        raise Unusable(f"{where} has no content")
    turn |= {key: value[key] for key in KEPT if value.get(key)}
    turn |= _thoughts(value, words)
    return turn


def _thoughts(value: Mapping[str, Any], words: str | None) -> Turn:
    """Beside the words, or a part of them."""
    found = next((value[key] for key in THOUGHTS if isinstance(value.get(key), str)), "")
    parts = value.get(words) if words else None
    if not found and isinstance(parts, list):
        found = "\n".join(
            part["thinking"]
            for part in parts
            if isinstance(part, dict) and isinstance(part.get("thinking"), str)
        )
    return {"reasoning_content": found} if found.strip() else {}


def content_of(value: Any, where: str = "system") -> str | None:
    """Words of a turn: a string, or parts of which each is text.

    Raises:
        Unusable: a part is none, such as an image.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "parts" in value:
        return content_of(value["parts"], where)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise Unusable(f"{where}: the content is {type(value).__name__}, not text")
    texts = []
    for part in value:
        text = part if isinstance(part, str) else None
        if isinstance(part, Mapping):
            if isinstance(part.get("thinking"), str):
                continue
            text = part.get("text")
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise Unusable(f"{where}: a part of the content is {kind or 'no text'}, not text")
        texts.append(text)
    return "\n".join(texts)


def _call(content: str | None, where: str) -> Turn:
    """A call of a tool that ShareGPT has as words."""
    try:
        calls = json.loads(content or "")
    except (ValueError, RecursionError):
        return {"role": "assistant", "content": content}
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        return {"role": "assistant", "content": content}
    functions = [
        {"name": call["name"], "arguments": call.get("arguments", call.get("parameters", {}))}
        for call in calls
    ]
    found = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": "", "tool_calls": found}


def tools_of(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What the template is told of tools; some sets have it as JSON in a string."""
    tools = row.get("tools") or row.get("functions")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"tools: not valid JSON: {error}") from error
    return tuple(tools) if isinstance(tools, list) and tools else None
