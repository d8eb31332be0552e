"""Messages of a request as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsconv.errors import InputError

from .fields import Fields
from .problems import Problem
from .served import Served

ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer word for it
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
MOST_MESSAGES = 10_000
MOST_PARTS = 1_000
MOST_TOOLS = 128
Turn = dict[str, Any]


def read_turns(fields: Fields) -> list[Turn]:
    """Raises Problem: naming the message and what is wrong with it."""
    given = fields.items("messages", MOST_MESSAGES)
    if not given:
        raise fields.wrong("messages", "is missing or empty")
    return [_turn(Fields(one, f"messages[{index}].")) for index, one in enumerate(given)]


def _turn(fields: Fields) -> Turn:
    role = fields.text("role")
    if role not in ROLES:
        raise fields.wrong("role", f"{str(role)[:40]!r} is none of {', '.join(ROLES)}")
    turn: Turn = {"role": ROLES[role], "content": _content(fields)}
    name = fields.text("name")
    if name is not None:
        turn["name"] = name
    if role == "assistant":
        thoughts, newer = fields.text("reasoning_content"), fields.text("reasoning")
        if None not in (thoughts, newer) and thoughts != newer:
            raise fields.wrong("reasoning", "differs from reasoning_content")
        thoughts = newer if thoughts is None else thoughts
        if thoughts is not None:
            turn["reasoning_content"] = thoughts
        calls = fields.items("tool_calls", MOST_TOOLS)
        if calls:
            turn["tool_calls"] = [
                _call(Fields(one, f"{fields.place}tool_calls[{i}].")) for i, one in enumerate(calls)
            ]
        for key in ("refusal", "audio", "function_call"):
            fields.refuse(key, "is not supported in a message of the assistant")
        fields.without_effect("annotations")
    if role == "tool":
        turn["tool_call_id"] = fields.text("tool_call_id")
    if turn["content"] is None and "tool_calls" not in turn:
        raise fields.wrong("content", "is missing")
    fields.done()
    return turn


def _content(fields: Fields) -> str | None:
    value = fields.any("content")
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong("content", "is neither a text nor a list of parts")
    texts = []
    for index, one in enumerate(fields.items("content", MOST_PARTS)):
        part = Fields(one, f"{fields.place}content[{index}].")
        kind = part.text("type")
        if kind != "text":
            raise part.wrong("type", f"{str(kind)[:40]!r} is not supported, only text is")
        text = part.required("text")
        if not isinstance(text, str):
            raise part.wrong("text", "is not a text")
        part.without_effect("cache_control")  # whose cache this is
        part.done()
        texts.append(text)
    return "\n".join(texts)


def _call(fields: Fields) -> Turn:
    kind = fields.text("type")
    if kind not in (None, "function"):
        raise fields.wrong("type", f"{kind[:40]!r} is not function")
    function = fields.child("function")
    if function is None:
        raise fields.wrong("function", "is missing")
    name, arguments = function.text("name"), function.any("arguments")
    if not name:
        raise function.wrong("name", "is missing")
    function.done()
    call = {
        "id": fields.text("id"),
        "type": "function",
        "function": {"name": name, "arguments": arguments if arguments is not None else "{}"},
    }
    fields.without_effect("index")
    fields.done()
    return call


def read_tools(fields: Fields) -> list[Turn]:
    """The functions that the model may call, as the request has them.

    Raises:
        Problem: one of them is no function with a name.
    """
    found = []
    for index, one in enumerate(fields.items("tools", MOST_TOOLS)):
        tool = Fields(one, f"tools[{index}].")
        if tool.text("type") != "function":
            raise tool.wrong("type", "only function is supported")
        function = tool.child("function")
        if function is None or not function.text("name"):
            raise tool.wrong("function", "has no name")
        if function.any("strict"):
            raise function.wrong("strict", "arguments are not forced into a schema; leave it out")
        found.append(one)
    return found


def render(
    served: Served, turns: Sequence[Turn], tools: Sequence[Turn], settings: Mapping[str, Any]
) -> str:
    """The text of a conversation. Another process writes it: not for the event loop.

    Raises:
        InputError: the template refuses it.
    """
    assert served.template is not None
    known = {**settings, "tools": list(tools) or None}
    special = served.tokenizer.special_tokens
    # Templates want arguments as an object (transformers' way), or as the text that clients send.
    objects, texts = (_with_arguments(turns, as_object) for as_object in (True, False))
    try:
        return served.template.render(objects, special, known)
    except InputError:
        if objects == texts:
            raise
        return served.template.render(texts, special, known)


def _with_arguments(turns: Sequence[Turn], as_object: bool) -> list[Turn]:
    return [
        {**turn, "tool_calls": [_converted(call, as_object) for call in turn["tool_calls"]]}
        if "tool_calls" in turn
        else turn
        for turn in turns
    ]


def _converted(call: Turn, as_object: bool) -> Turn:
    function = call["function"]
    arguments = function["arguments"]
    if as_object and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise Problem(400, "tool_calls: arguments are not JSON", "messages") from error
    elif not as_object and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
