"""What a row of a file of prompts asks, and the settings that it brings along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsconv.errors import InputError
from dsconv.runtime.text.chat_template import Message
from dsconv.runtime.text.row_forms import ADDED, ANSWERS, QUESTIONS, PlainText, read_row
from dsconv.runtime.text.rows import Unusable, rows_of
from dsconv.runtime.text.text_file import TextFile, open_text

from .row_settings import refuse_unknown, settings_of

ASKED = ("prompt", "question", "problem", "query", "instruction", "input")
NAMES = ("id", "custom_id", "idx", "index", "uid")
NO_ANSWER = "-"
BODY = "body"  # of a row in OpenAI's batches
# Where such a row would be sent -> is its prompt plain text, without the chat template?
PLACES = {"/v1/chat/completions": False, "/v1/completions": True}
PASSAGES = ("passage", "article", "document")  # what a question beside them is about
OTHER_TEXTS = ("text", "content", "raw_content", "code", "chosen", "rejected")
FORMS = "prompt; question; messages that end with a user's"


@dataclass(frozen=True)
class PromptRow:
    """messages: what is asked; a single user's one for a plain prompt. raw: without the chat
    template. model: the name that the row asks of. error: why nothing is asked."""

    index: int
    name: Any
    messages: tuple[Message, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    raw: bool = False
    model: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class PromptFile:
    """A row for every one that is not empty, and the sha256 of what was read."""

    rows: tuple[PromptRow, ...]
    sha256: str


def prompt_rows(path: Path) -> PromptFile:
    """The rows of a file, or of a pipe.

    Raises:
        InputError: it cannot be read, or no row can be used.
    """
    with open_text(path, pipe=True) as file:
        return PromptFile(tuple(_rows_of(path, file)), file.sha256())


def _rows_of(path: Path, file: TextFile) -> list[PromptRow]:
    """One for every row that is not empty.

    Raises:
        InputError: it cannot be read, or no row can be used.
    """
    rows = rows_of(file)
    if rows is None:
        raise InputError(
            f"{path}: plain text, not rows of prompts",
            'use JSON lines as {"prompt": "…"}; one prompt as text goes to --prompt-file',
        )
    found = [row for index in range(len(rows)) if (row := _row(rows, index)) is not None]
    if not any(row.error is None for row in found):
        reason = found[0].error if found else "empty rows"
        where = rows.where(found[0].index) if found else "line 1"
        raise InputError(f"{path}: {where}: {reason}", f"rows may hold: {FORMS}")
    return found


def _row(rows: Any, index: int) -> PromptRow | None:
    try:
        value = rows.value(index)
    except Unusable as error:
        return None if error.blank else PromptRow(index, None, error=str(error))
    if value is None:
        return None
    name = next((value[key] for key in NAMES if key in value), None) if _is_row(value) else None
    try:
        if not _is_row(value):
            return PromptRow(index, name, messages_of(value))
        raw, asked = _sent_to(value), value
        if isinstance(value.get(BODY), dict):
            asked = value[BODY]
            refuse_unknown(asked)
        settings, stop = settings_of(asked)
        model = asked.get("model") if isinstance(asked.get("model"), str) else None
        return PromptRow(index, name, messages_of(asked), settings, stop, raw, model)
    except Unusable as error:
        return None if error.blank else PromptRow(index, name, error=str(error))


def _is_row(value: Any) -> bool:
    return isinstance(value, dict)


def _sent_to(value: Mapping[str, Any]) -> bool:
    """-> is the prompt plain text? Raises Unusable: the row asks for no text."""
    place = value.get("url") if BODY in value else None
    if place is None:
        return False
    if place not in PLACES:
        raise Unusable(f"url is {str(place)[:60]!r}; answered are {' and '.join(PLACES)}")
    return PLACES[place]


def messages_of(value: Any) -> tuple[Message, ...]:
    """Raises Unusable: nothing is asked."""
    row: Any = {"text": value} if isinstance(value, str) else value
    if isinstance(value, dict):
        texts = {key.lower(): item for key, item in value.items()}
        if not texts.get("messages") and not texts.get("conversations"):
            asked = next((key for key in ASKED if isinstance(texts.get(key), str)), None)
            if asked is not None and not texts.get("choices"):
                row = _as_pair(texts, asked)
    found = read_row(row)
    if isinstance(found, PlainText):
        return (Message("user", found.text),)
    if found.tools:
        raise Unusable("tools, which this command does not call")
    turns = list(found.turns)
    while turns and turns[-1]["role"] == "assistant":  # what a data set gives as the answer
        turns.pop()
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("no message of a user at its end", form=True)
    if not all(isinstance(turn.get("content"), str) for turn in turns):
        raise Unusable("a message without text")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _as_pair(texts: Mapping[str, Any], asked: str) -> dict[str, Any]:
    """A question in the form that data sets have, with system prompt, history and what it is about;
    its answer is left out later."""
    if not texts[asked].strip():
        raise Unusable("the prompt is empty", blank=True)
    for name in PASSAGES:
        if isinstance(texts.get(name), str) and texts[name].strip():
            raise Unusable(f"{name} beside {asked}: write both as one prompt")
    left_out = {*QUESTIONS, *ANSWERS, *OTHER_TEXTS} - {asked, *ADDED}
    kept = {name: item for name, item in texts.items() if name not in left_out}
    return {**kept, "answer": NO_ANSWER}
