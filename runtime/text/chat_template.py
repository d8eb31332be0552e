"""Render chat templates: programs that come with the model, run with limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError

from .bounded_call import BoundReached, bounded_call
from .tokenizer import read_side_file

ESCAPED_BYTES = 6  # of one character in JSON, at most: UTF-8 needs 4, a control character 6
HINT = "use the template of the original model, or use plain text without a template"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


def chat_template(side_files: Mapping[str, bytes]) -> str | None:
    """The model's template; None when it has none. Files of its own win over tokenizer_config.

    Raises:
        InputError: the file that holds it is broken.
    """
    if "chat_template.jinja" in side_files:
        try:
            return side_files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"chat_template.jinja: not UTF-8: {error}", HINT) from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        reader = read_side_file(side_files, name)
        if isinstance(reader.data.get("chat_template"), list):
            return _default_of(reader.data["chat_template"], name)
        if reader.has("chat_template"):
            return reader.string("chat_template")
    return None


def _default_of(templates: list[Any], where: str) -> str:
    for entry in templates:
        if isinstance(entry, dict) and entry.get("name") == "default":
            return ConfigReader(entry, f"{where}: chat_template").string("template")
    raise InputError(f"{where}: chat_template: none of the list is named default", HINT)


def render_chat(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, Any],
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as the text the model was trained on, ready for its next turn.

    Raises:
        InputError: as `render_chats`.
    """
    return render_chats(template, [messages], special_tokens, add_generation_prompt)[0]


def render_chats(
    template: str,
    conversations: Sequence[Sequence[Message]],
    special_tokens: Mapping[str, Any],
    add_generation_prompt: bool = True,
) -> list[str]:
    """Several conversations, in one process and within the limits of one.

    Raises:
        InputError: the template is broken, refuses the messages, reaches out of its sandbox, or
            exceeds its limits of time and size.
    """
    variables = {**special_tokens, "tools": None, "documents": None}
    variables["add_generation_prompt"] = add_generation_prompt
    return _render(
        template,
        [
            {**variables, "messages": [asdict(message) for message in messages]}
            for messages in conversations
        ],
        sum(len(message.content) for messages in conversations for message in messages),
    )


def render_turns(
    template: str,
    turns: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    settings: Mapping[str, Any],
) -> str:
    """One conversation whose turns may hold more than texts: calls of tools, thoughts.

    Args:
        settings: what the template may ask for besides: tools, add_generation_prompt, ….

    Raises:
        InputError: as `render_chats`.
    """
    variables = {**special_tokens, "tools": None, "documents": None, **settings}
    variables["messages"] = [dict(turn) for turn in turns]
    given = len(json.dumps([variables["messages"], variables["tools"]], ensure_ascii=False))
    return _render(template, [variables], given)[0]


def _render(template: str, conversations: Sequence[Mapping[str, Any]], given: int) -> list[str]:
    """given: characters of the conversations."""
    from .template_sandbox import render  # here once, not in every process that renders

    if len(template) > limits.TEMPLATE_CHARACTERS:
        size = len(template)
        raise InputError(
            f"chat template: {size} characters, limit {limits.TEMPLATE_CHARACTERS}", HINT
        )
    characters = limits.TEMPLATE_OUTPUT + given

    def render_all() -> str:
        texts = [render(template, variables, characters) for variables in conversations]
        return json.dumps(texts, ensure_ascii=False)

    try:
        text = bounded_call(
            render_all,
            limits.TEMPLATE_SECONDS,
            limits.TEMPLATE_MEMORY + 64 * given,
            ESCAPED_BYTES * characters,
        )
        return [str(rendered) for rendered in json.loads(text)]
    except BoundReached as error:
        raise InputError(f"chat template: {error}", HINT) from error
